//! YAML documents as JSON values.

use std::path::Path;

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// All documents of a file.
pub fn read(path: &Path) -> Vec<Value> {
    parse(&super::read(path), &path.display().to_string())
}

pub fn parse(text: &str, name: &str) -> Vec<Value> {
    let documents = YamlLoader::load_from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    documents.iter().map(|document| value(document, name)).collect()
}

fn value(yaml: &Yaml, name: &str) -> Value {
    match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(value) => (*value).into(),
        Yaml::Integer(value) => (*value).into(),
        Yaml::Real(text) => text.parse::<f64>().unwrap_or_else(|e| panic!("{name}: {text}: {e}")).into(),
        Yaml::String(text) => text.as_str().into(),
        Yaml::Array(items) => items.iter().map(|item| value(item, name)).collect(),
        Yaml::Hash(fields) => {
            let mut object = Map::new();
            for (key, field) in fields {
                let key = key.as_str().unwrap_or_else(|| panic!("{name}: a key is not text: {key:?}"));
                object.insert(key.to_owned(), value(field, name));
            }
            Value::Object(object)
        }
        Yaml::Alias(_) | Yaml::BadValue => panic!("{name}: aliases are not read here"),
    }
}
