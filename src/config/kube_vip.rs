//! kube-vip's variables: manifests of people who migrate still set them, and each is answered with
//! the setting that replaces it.

/// What replaces a variable of kube-vip.
#[derive(Clone, Copy, Debug)]
pub enum Instead {
    /// This setting, with the same value.
    Same(&'static str),
    /// This setting, with a value converted from that one; the text says how.
    Made(&'static str, fn(&str) -> String, &'static str),
    /// Holds why nothing is needed, or possible.
    Nothing(&'static str),
}

impl Instead {
    /// What to do, as half a sentence. `value` is the variable's.
    pub fn advice(&self, value: &str) -> String {
        match self {
            Instead::Same(setting) => format!("write PINNACE_{setting}={value}"),
            Instead::Made(setting, make, how) => {
                format!("write PINNACE_{setting}={} ({how})", make(value))
            }
            Instead::Nothing(why) => (*why).to_string(),
        }
    }
}

const ALWAYS: &str = "leave it out: Pinnace always does this";
const CONTROL_PLANE: &str =
    "Pinnace has no address for the control plane: keep kube-vip, or another one, for that alone";
const BGP: &str =
    "Pinnace does not speak BGP: have a router send the pool's addresses to the nodes";
const DETECTION: &str = "leave it out: nodes detect failures by BFD and take over in a fraction of a second (PINNACE_BFD_INTERVAL, PINNACE_BFD_MULTIPLIER)";
const EVERYTHING: &str = "one address and port for health, metrics and state";

fn opposite(value: &str) -> String {
    (!value.eq_ignore_ascii_case("true")).to_string()
}

/// `:2112`, `2112` or `10.0.0.1:2112`.
fn listen(value: &str) -> String {
    let port = value.strip_prefix(':').unwrap_or(value);
    if port.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("0.0.0.0:{port}")
    } else {
        value.to_owned()
    }
}

/// The variables, as kube-vip spells them.
pub const VARIABLES: &[(&str, Instead)] = &[
    ("vip_interface", Instead::Same("INTERFACES")),
    ("vip_servicesinterface", Instead::Same("INTERFACES")),
    ("vip_nodename", Instead::Same("NODE_NAME")),
    ("lb_class_name", Instead::Same("CLASS")),
    ("lb_class_only", Instead::Made("DEFAULT_CLASS", opposite, "the opposite")),
    ("svc_enable", Instead::Nothing(ALWAYS)),
    ("svc_election", Instead::Nothing(ALWAYS)),
    ("vip_arp", Instead::Nothing(ALWAYS)),
    ("vip_leaseduration", Instead::Nothing(DETECTION)),
    ("vip_renewdeadline", Instead::Nothing(DETECTION)),
    ("vip_retryperiod", Instead::Nothing(DETECTION)),
    ("prometheus_server", Instead::Made("LISTEN", listen, EVERYTHING)),
    ("health_check_port", Instead::Made("LISTEN", listen, EVERYTHING)),
    ("cp_enable", Instead::Nothing(CONTROL_PLANE)),
    ("address", Instead::Nothing(CONTROL_PLANE)),
    ("port", Instead::Nothing(CONTROL_PLANE)),
    ("bgp_enable", Instead::Nothing(BGP)),
    ("bgp_as", Instead::Nothing(BGP)),
    ("bgp_routerid", Instead::Nothing(BGP)),
    ("bgp_peers", Instead::Nothing(BGP)),
    (
        "enable_upnp",
        Instead::Nothing("Pinnace does not open ports in routers: forward them there by hand"),
    ),
];

/// Names so generic that they count as kube-vip's only beside one of the others.
const GENERIC: [&str; 2] = ["address", "port"];

/// The variables that are set, with the advice about each.
pub(super) fn advice<'a>(
    environment: impl Iterator<Item = (&'a str, &'a str)> + Clone,
) -> Vec<(&'static str, String)> {
    let find = |name: &'static str| {
        environment
            .clone()
            .find(|(set, value)| *set == name && !value.is_empty())
            .map(|(_, value)| value)
    };
    let set: Vec<_> = VARIABLES
        .iter()
        .filter_map(|(name, instead)| Some((*name, instead.advice(find(name)?))))
        .collect();
    if set.iter().all(|(name, _)| GENERIC.contains(name)) { Vec::new() } else { set }
}

/// The table of docs/configuration.md.
pub fn markdown_table() -> String {
    let mut table = "| kube-vip | Pinnace |\n|---|---|\n".to_owned();
    for (name, instead) in VARIABLES {
        let text = match instead {
            Instead::Same(setting) => format!("`PINNACE_{setting}`"),
            Instead::Made(setting, _, how) => format!("`PINNACE_{setting}`: {how}"),
            Instead::Nothing(why) => (*why).to_owned(),
        };
        table.push_str(&format!("| `{name}` | {text} |\n"));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::table::TABLE;

    #[test]
    fn every_answer_names_a_setting_that_exists() {
        for (name, instead) in VARIABLES {
            if let Instead::Same(setting) | Instead::Made(setting, ..) = instead {
                assert!(
                    TABLE.iter().any(|known| known.name == *setting),
                    "{name}: {setting} is no setting"
                );
            }
        }
    }

    #[test]
    fn variables_of_kube_vip_are_answered_and_those_of_others_are_not() {
        let set =
            [("vip_interface", "eth0"), ("port", "6443"), ("PATH", "/bin"), ("svc_enable", "")];
        let found = advice(set.into_iter());
        assert_eq!(
            found.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["vip_interface", "port"]
        );
        assert_eq!(found[0].1, "write PINNACE_INTERFACES=eth0");
        let set = [
            ("lb_class_only", "true"),
            ("prometheus_server", ":2112"),
            ("health_check_port", "8080"),
            ("vip_leaseduration", "5"),
        ];
        let found: Vec<String> =
            advice(set.into_iter()).into_iter().map(|(_, advice)| advice).collect();
        assert_eq!(found[0], "write PINNACE_DEFAULT_CLASS=false (the opposite)");
        assert!(
            found[1].starts_with("leave it out") && found[1].contains("PINNACE_BFD_INTERVAL"),
            "{found:?}"
        );
        assert!(
            found[2].starts_with("write PINNACE_LISTEN=0.0.0.0:2112 (")
                && found[3].starts_with("write PINNACE_LISTEN=0.0.0.0:8080 (")
        );
        assert_eq!(advice([("port", "80"), ("address", "here")].into_iter()), []);
    }
}
