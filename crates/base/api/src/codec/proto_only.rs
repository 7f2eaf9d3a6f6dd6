//! Reading only some fields of some types: for those who follow large objects for a few facts.

use crate::SchemaRef;
use crate::schema::TypeId;

/// The fields that are read of some types; of all other types all are.
#[derive(Debug)]
pub struct Only {
    pub(super) schema: SchemaRef,
    fields: Vec<(TypeId, Vec<u32>)>,
}

impl Only {
    /// `wanted`: types by their full names, and of each the fields by theirs. `None`: the schema lacks one of them.
    pub fn new(schema: &SchemaRef, wanted: &[(&str, &[&str])]) -> Option<Only> {
        let of = |(name, fields): &(&str, &[&str])| {
            let id = *schema.schema.by_name.get(*name)?;
            let def = schema.schema.get(id);
            let number = |field: &&str| def.field(field).map(|f| f.number).filter(|n| *n != 0);
            Some((id, fields.iter().map(number).collect::<Option<_>>()?))
        };
        Some(Only {
            fields: wanted.iter().map(of).collect::<Option<_>>()?,
            schema: schema.clone(),
        })
    }

    /// The numbers of a type's fields that are read; `None`: all.
    pub(super) fn of(&self, id: TypeId) -> Option<&[u32]> {
        let found = self.fields.iter().find(|(of, _)| *of == id);
        found.map(|(_, numbers)| &numbers[..])
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto;
    use super::*;
    use crate::builtin::builtin_kind_at;
    use crate::{Object, value};

    #[test]
    fn what_is_not_asked_for_is_not_read() {
        let schema = builtin_kind_at("v1", "Pod").unwrap();
        let wanted: &[(&str, &[&str])] = &[
            ("io.k8s.api.core.v1.PodSpec", &["nodeName", "containers"]),
            ("io.k8s.api.core.v1.Container", &["envFrom"]),
        ];
        let only = Only::new(&schema, wanted).unwrap();
        let from = value!([{"secretRef": {"name": "s"}}]);
        let pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {
            "nodeName": "n", "hostname": "h", "containers": [{"name": "c", "image": "i", "envFrom": from.clone()}],
        }});
        let bytes = proto::encode(&Object::try_from(pod).unwrap(), &schema).unwrap();
        let read = proto::open(&bytes).unwrap().decode_only(&only).unwrap();
        assert_eq!(read.labels().and_then(|l| l.str("x")), Some("y"));
        assert_eq!(read.str_at(&["spec", "nodeName"]), Some("n"));
        assert_eq!(read.at(&["spec", "hostname"]), None);
        let container = &read.at(&["spec", "containers"]).unwrap().as_array().unwrap()[0];
        assert_eq!(container.get("image"), None);
        assert_eq!(container.get("envFrom"), Some(&from));
        assert!(Only::new(&schema, &[("io.k8s.api.core.v1.PodSpec", &["nothing"])]).is_none());
        assert!(Only::new(&schema, &[("nothing", &[])]).is_none());
    }
}
