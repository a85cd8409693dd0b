//! Objects of Kubernetes against the schemas in `/testdata/deploy`: as much of JSON Schema as those use.

use std::path::Path;

use serde_json::{Map, Value};

/// Definitions by name.
pub struct Schemas(Map<String, Value>);

/// Whether an object is all there, or a patch of another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Whole,
    Part,
}

impl Schemas {
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/deploy/kubernetes-1.34.json");
        Self(serde_json::from_str(&super::read(&path)).expect("the schemas are JSON"))
    }

    /// What is wrong with an object of Kubernetes, each with the path to it.
    pub fn problems(&self, object: &Value, extent: Extent) -> Vec<String> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").rsplit_once('/').unwrap_or(("core", text("apiVersion")));
        let group = group.split('.').next().unwrap_or_default();
        let name = format!("{group}.{version}.{}", text("kind"));
        let mut problems = Vec::new();
        match self.0.get(&name) {
            Some(schema) => self.check(object, schema, extent, text("kind"), &mut problems),
            None => problems.push(format!("no schema for {name}")),
        }
        problems
    }

    fn check(&self, value: &Value, schema: &Value, extent: Extent, path: &str, problems: &mut Vec<String>) {
        if let Some(name) = schema["$ref"].as_str() {
            return self.check(value, &self.0[name], extent, path, problems);
        }
        if !is_of_type(value, &schema["type"]) {
            problems.push(format!("{path}: {value} is not of type {}", schema["type"]));
            return;
        }
        if schema["enum"].as_array().is_some_and(|allowed| !allowed.contains(value)) {
            problems.push(format!("{path}: {value} is none of {}", schema["enum"]));
        }
        for (at, item) in value.as_array().into_iter().flatten().enumerate() {
            self.check(item, &schema["items"], extent, &format!("{path}[{at}]"), problems);
        }
        let Some(fields) = value.as_object() else { return };
        for (key, field) in fields {
            let known = schema["properties"].get(key);
            match known.or(schema.get("additionalProperties").filter(|more| more.is_object())) {
                Some(schema) => self.check(field, schema, extent, &format!("{path}.{key}"), problems),
                None if schema["additionalProperties"] == false => problems.push(format!("{path}: no field {key}")),
                None => {}
            }
        }
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if extent == Extent::Whole && !fields.contains_key(key) {
                problems.push(format!("{path}: lacks {key}"));
            }
        }
    }
}

/// `types` is one name, a list of them, or nothing for any.
fn is_of_type(value: &Value, types: &Value) -> bool {
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "number" => value.is_number(),
        _ => false,
    };
    match types {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

#[test]
fn what_is_wrong_is_found() {
    let schemas = Schemas::read();
    let check = |yaml: &str, extent: Extent, expected: &[&str]| {
        let problems = schemas.problems(&super::yaml::parse(yaml, "test")[0], extent);
        assert_eq!(problems, expected, "{yaml}");
    };
    let budget = "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: a}\nspec: ";
    check(&(budget.to_owned() + "{maxUnavailable: 1, selector: {matchLabels: {a: b}}}"), Extent::Whole, &[]);
    check(&(budget.to_owned() + "{maxUnavailable: 10%}"), Extent::Whole, &[]);
    check(
        &(budget.to_owned() + "{maxUnavailable: true, minimum: 1}"),
        Extent::Whole,
        &[
            "PodDisruptionBudget.spec.maxUnavailable: true is not of type [\"string\",\"integer\"]",
            "PodDisruptionBudget.spec: no field minimum",
        ],
    );
    let service = "apiVersion: v1\nkind: Service\nspec: {ports: [{name: a}]}";
    check(service, Extent::Whole, &["Service.spec.ports[0]: lacks port"]);
    check(service, Extent::Part, &[]);
    let group =
        "apiVersion: leaderworkerset.x-k8s.io/v1\nkind: LeaderWorkerSet\nspec: {leaderWorkerTemplate: {size: 2}}";
    check(group, Extent::Whole, &["LeaderWorkerSet.spec.leaderWorkerTemplate: lacks workerTemplate"]);
    let startup = "apiVersion: leaderworkerset.x-k8s.io/v1\nkind: LeaderWorkerSet\nspec: {startupPolicy: Late}";
    let late = "LeaderWorkerSet.spec.startupPolicy: \"Late\" is none of [\"LeaderCreated\",\"LeaderReady\"]";
    check(startup, Extent::Part, &[late]);
    check("apiVersion: v1\nkind: Pot", Extent::Whole, &["no schema for core.v1.Pot"]);
    check(
        "apiVersion: v1\nkind: ConfigMap\ndata: {a: 1}",
        Extent::Whole,
        &["ConfigMap.data.a: 1 is not of type \"string\""],
    );
}
