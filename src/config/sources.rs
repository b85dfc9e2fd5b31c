//! One source of settings for figment: values as raw text, each with its place.

use std::collections::BTreeMap;

use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};

/// Values by the setting's name in the table, each with its place as its user spells it
/// (`PINNACE_PROBE`, `/etc/pinnace/config.yaml:3: probe`): (place, value).
pub(super) type Given = BTreeMap<&'static str, (String, String)>;

/// A source. Its metadata carries its name, and an interpolater that turns a setting's name into
/// the place of the value.
pub(super) struct Raw {
    pub(super) name: &'static str,
    pub(super) given: Given,
}

impl Provider for Raw {
    fn metadata(&self) -> Metadata {
        let places: BTreeMap<&'static str, String> =
            self.given.iter().map(|(name, (place, _))| (*name, place.clone())).collect();
        Metadata::named(self.name).interpolater(move |_, names| {
            names.iter().filter_map(|name| places.get(name)).cloned().collect()
        })
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let values: Dict = self
            .given
            .iter()
            .map(|(name, (_, value))| ((*name).to_owned(), Value::from(value.clone())))
            .collect();
        Ok(Map::from([(Profile::Default, values)]))
    }
}
