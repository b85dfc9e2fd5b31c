//! The ConfigMap `kubevip` of kube-vip's cloud provider, which often lies beside the Services: its
//! ranges correspond to Pinnace's pools.

use std::collections::BTreeMap;

use crate::ipam::pool::parse_pools;
use crate::k8s::problems::quoted;

/// Name of the ConfigMap.
pub(crate) const NAME: &str = "kubevip";
const GLOBAL: &str = "global";

/// A note that translates its data into settings of Pinnace.
pub(crate) fn advice<'a>(data: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let mut pools: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut remarks = Vec::new();
    for (key, value) in data {
        if let Some(namespace) = key.strip_prefix("range-").or_else(|| key.strip_prefix("cidr-")) {
            for range in value.split(',').map(str::trim).filter(|range| !range.is_empty()) {
                if range.starts_with("0.0.0.0") {
                    remarks.push(format!(
                        "{key}: {range} asks for addresses by DHCP, which is not supported"
                    ));
                } else {
                    pools.entry(namespace).or_default().push(range);
                }
            }
        } else if let Some(namespace) = key.strip_prefix("allow-share-") {
            remarks.push(format!("{key}: Services in {namespace} that share an address need the annotation pinnace.dev/allow-shared-ip"));
        } else {
            remarks.push(format!("{}: has no counterpart", quoted(key)));
        }
    }
    let line = match pools.len() {
        1 if pools.contains_key(GLOBAL) => pools[GLOBAL].join(","),
        _ => {
            let pool = |(namespace, ranges): (&&str, &Vec<&str>)| match *namespace {
                GLOBAL => format!("{GLOBAL}={}", ranges.join(",")),
                namespace => format!("{namespace}[{namespace}]={}", ranges.join(",")),
            };
            pools.iter().map(pool).collect::<Vec<_>>().join(";")
        }
    };
    let first = match parse_pools(&line) {
        _ if line.is_empty() => "names no addresses".to_owned(),
        Ok(_) => format!("write PINNACE_POOLS=\"{line}\""),
        Err(errors) => format!(
            "its ranges cannot be used: {}",
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        ),
    };
    let remarks: String = remarks.iter().map(|remark| format!("; {remark}")).collect();
    format!("ConfigMap {NAME} of kube-vip is not read: {first}{remarks}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice_on(data: &[(&str, &str)]) -> String {
        let data: BTreeMap<String, String> =
            data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        advice(data.iter())
    }

    #[test]
    fn its_ranges_are_pools() {
        let global = advice_on(&[
            ("range-global", "10.88.0.200-10.88.0.210,10.88.0.220-10.88.0.221"),
            ("cidr-global", "10.89.0.0/24"),
        ]);
        assert!(
            global.ends_with(
                "PINNACE_POOLS=\"10.89.0.0/24,10.88.0.200-10.88.0.210,10.88.0.220-10.88.0.221\""
            ),
            "{global}"
        );
        let some = advice_on(&[
            ("cidr-shop", "10.90.0.0/28"),
            ("range-global", "10.88.0.200-10.88.0.210"),
            ("allow-share-shop", "true"),
        ]);
        assert!(some.contains("PINNACE_POOLS=\"global=10.88.0.200-10.88.0.210;shop[shop]=10.90.0.0/28\"; allow-share-shop"), "{some}");
    }

    #[test]
    fn what_cannot_be_a_pool_is_said() {
        assert!(advice_on(&[("cidr-global", "0.0.0.0/32")]).contains("DHCP"));
        assert!(advice_on(&[("cidr-global", "nonsense")]).contains("cannot be used"));
        assert!(advice_on(&[]).contains("names no addresses"));
    }
}
