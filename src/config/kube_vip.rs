//! kube-vip's variables: people bring them along in their manifests, and each is answered with what to write here in its place.

/// What takes the place of a variable of kube-vip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// This setting, with the same value.
    Same(&'static str),
    /// This setting, which takes other values.
    Setting(&'static str, &'static str),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

impl Instead {
    /// What to do, as half a sentence. `value` is what the variable says.
    pub fn advice(&self, value: &str) -> String {
        match self {
            Instead::Same(setting) => format!("write PINNACE_{setting}={value}"),
            Instead::Setting(setting, how) => format!("write PINNACE_{setting}: {how}"),
            Instead::Nothing(why) => (*why).to_string(),
        }
    }
}

const ALWAYS: &str = "leave it out: Pinnace always does this";
const CONTROL_PLANE: &str = "Pinnace has no address for the control plane: keep kube-vip, or another one, for that alone";
const BGP: &str = "Pinnace does not speak BGP: have a router send the pool's addresses to the nodes";
const DETECTION: &str = "nodes watch each other by BFD; a node is lost after BFD_INTERVAL times BFD_MULTIPLIER";

/// The variables, as kube-vip spells them.
pub const VARIABLES: &[(&str, Instead)] = &[
    ("vip_interface", Instead::Same("INTERFACES")),
    ("vip_servicesinterface", Instead::Same("INTERFACES")),
    ("vip_nodename", Instead::Same("NODE_NAME")),
    ("lb_class_name", Instead::Same("CLASS")),
    ("lb_class_only", Instead::Setting("DEFAULT_CLASS", "the opposite, false where this is true")),
    ("svc_enable", Instead::Nothing(ALWAYS)),
    ("svc_election", Instead::Nothing(ALWAYS)),
    ("vip_arp", Instead::Nothing(ALWAYS)),
    ("vip_leaseduration", Instead::Setting("BFD_INTERVAL", DETECTION)),
    ("vip_renewdeadline", Instead::Setting("BFD_INTERVAL", DETECTION)),
    ("vip_retryperiod", Instead::Setting("BFD_MULTIPLIER", DETECTION)),
    ("prometheus_server", Instead::Setting("LISTEN", "address:port for health, metrics and state")),
    ("health_check_port", Instead::Setting("LISTEN", "address:port for health, metrics and state")),
    ("cp_enable", Instead::Nothing(CONTROL_PLANE)),
    ("address", Instead::Nothing(CONTROL_PLANE)),
    ("port", Instead::Nothing(CONTROL_PLANE)),
    ("bgp_enable", Instead::Nothing(BGP)),
    ("bgp_as", Instead::Nothing(BGP)),
    ("bgp_routerid", Instead::Nothing(BGP)),
    ("bgp_peers", Instead::Nothing(BGP)),
    ("enable_upnp", Instead::Nothing("Pinnace does not open ports in routers: forward them there by hand")),
];

/// Names that anybody may use for anything; they mean kube-vip only beside one of the others.
const GENERIC: [&str; 2] = ["address", "port"];

/// Those of the variables that are set, with the advice about each.
pub(super) fn advice<'a>(environment: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Vec<(&'static str, String)> {
    let find = |name: &'static str| environment.clone().find(|(set, value)| *set == name && !value.is_empty()).map(|(_, value)| value);
    let set: Vec<_> = VARIABLES.iter().filter_map(|(name, instead)| Some((*name, instead.advice(find(name)?)))).collect();
    if set.iter().all(|(name, _)| GENERIC.contains(name)) { Vec::new() } else { set }
}

/// As a table for the README.
pub fn markdown_table() -> String {
    let mut table = "| kube-vip | Pinnace |\n|---|---|\n".to_owned();
    for (name, instead) in VARIABLES {
        let text = match instead {
            Instead::Same(setting) => format!("`PINNACE_{setting}`"),
            Instead::Setting(setting, how) => format!("`PINNACE_{setting}`: {how}"),
            Instead::Nothing(why) => (*why).to_owned(),
        };
        table.push_str(&format!("| `{name}` | {text} |\n"));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::table::TABLE;
    use super::*;

    #[test]
    fn every_answer_names_a_setting_that_exists() {
        for (name, instead) in VARIABLES {
            if let Instead::Same(setting) | Instead::Setting(setting, _) = instead {
                assert!(TABLE.iter().any(|known| known.name == *setting), "{name}: {setting} is no setting");
            }
        }
    }

    #[test]
    fn variables_of_kube_vip_are_answered_and_those_of_others_are_not() {
        let set = [("vip_interface", "eth0"), ("port", "6443"), ("PATH", "/bin"), ("svc_enable", "")];
        let told = advice(set.into_iter());
        assert_eq!(told.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["vip_interface", "port"]);
        assert_eq!(told[0].1, "write PINNACE_INTERFACES=eth0");
        assert_eq!(advice([("port", "80"), ("address", "here")].into_iter()), []);
    }
}
