//! The three kinds of objects that are watched.

use std::borrow::Cow;
use std::fmt::Debug;

use k8s_openapi::api::{core, discovery};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::k8s::convert::{self, SERVICE_NAME_LABEL};
use crate::k8s::objects::{EndpointSlice, Node, Service};
use crate::model::trigger_time::TriggerTime;
use crate::model::{Kind, SourceChange};

/// A kind of object that is watched.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    const KIND: Kind;
    /// Resource and group, as in RBAC.
    const NAME: &'static str;
    /// The label selector of the watch.
    const LABELS: Option<&'static str> = None;

    /// The object as a change, None when it is of no concern; beside it what is wrong with it.
    fn convert(&self) -> (Option<SourceChange>, Vec<String>);

    /// When the change that wrote this object was triggered, if it says so.
    fn last_change(&self) -> Option<TriggerTime> {
        None
    }

    /// The removal of this object.
    fn gone(&self) -> SourceChange;
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;
    const NAME: &'static str = "services";

    fn convert(&self) -> (Option<SourceChange>, Vec<String>) {
        // A Service carries its problems itself: the engine reports them beside the Service.
        let change = convert::service(self)
            .map(|service| SourceChange::Service(service.key.clone(), Some(Box::new(service))));
        (change, Vec::new())
    }

    fn gone(&self) -> SourceChange {
        SourceChange::Service(convert::key(&self.metadata), None)
    }
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
    const NAME: &'static str = "endpointslices.discovery.k8s.io";
    const LABELS: Option<&'static str> = Some(SERVICE_NAME_LABEL);

    fn convert(&self) -> (Option<SourceChange>, Vec<String>) {
        let converted = convert::endpoint_slice(self);
        let change = converted
            .value
            .map(|slice| SourceChange::Slice(slice.key.clone(), Some(Box::new(slice))));
        (change, converted.problems)
    }

    fn last_change(&self) -> Option<TriggerTime> {
        convert::last_change(self)
    }

    fn gone(&self) -> SourceChange {
        SourceChange::Slice(convert::key(&self.metadata), None)
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;
    const NAME: &'static str = "nodes";

    fn convert(&self) -> (Option<SourceChange>, Vec<String>) {
        let converted = convert::node(self);
        let change =
            converted.value.map(|node| SourceChange::Node(node.name.clone(), Some(Box::new(node))));
        (change, converted.problems)
    }

    fn gone(&self) -> SourceChange {
        SourceChange::Node(self.name_any().into(), None)
    }
}

/// Where the API serves the compact type: where it serves the full one.
macro_rules! resource {
    ($compact:ty, $full:ty) => {
        impl Resource for $compact {
            type DynamicType = ();
            type Scope = <$full as Resource>::Scope;

            fn kind(_: &()) -> Cow<'_, str> {
                <$full as Resource>::kind(&())
            }

            fn group(_: &()) -> Cow<'_, str> {
                <$full as Resource>::group(&())
            }

            fn version(_: &()) -> Cow<'_, str> {
                <$full as Resource>::version(&())
            }

            fn plural(_: &()) -> Cow<'_, str> {
                <$full as Resource>::plural(&())
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Service, core::v1::Service);
resource!(EndpointSlice, discovery::v1::EndpointSlice);
resource!(Node, core::v1::Node);
