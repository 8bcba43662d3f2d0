//! The keys as a JSON Schema (draft 2020-12), from the same types that read them: an editor completes and checks a file
//! that names it with `"$schema"`.

use super::schema::Config;
use super::sweep::SweepFile;
use schemars::schema_for;
use serde_json::{json, Value};

/// Of a run's config. No key is required: a file may extend another.
pub fn config() -> Value {
    let extends = json!({"type": "string", "description": "A config whose keys this one inherits, relative to this file."});
    with_extra(schema_for!(Config).to_value(), "linformer: a run", &[("extends", extends)])
}

/// Of a sweep.
pub fn sweep() -> Value {
    with_extra(schema_for!(SweepFile).to_value(), "linformer: a sweep", &[])
}

/// A file's schema with its title, and keys that its type does not have.
pub fn with_extra(mut schema: Value, title: &str, extra: &[(&str, Value)]) -> Value {
    schema["title"] = title.into();
    schema["properties"]["$schema"] = json!({"type": "string", "description": "Where this schema is; for editors."});
    for (key, value) in extra {
        schema["properties"][*key] = value.clone();
    }
    schema
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::load::all_keys;
    use super::*;

    fn resolve<'a>(schema: &'a Value, at: &'a Value) -> &'a Value {
        match at["$ref"].as_str() {
            Some(path) => schema.pointer(path.trim_start_matches('#')).unwrap(),
            None => at,
        }
    }

    /// Every key that a config can have is in the schema, with a type or a choice.
    #[test]
    fn every_key_is_described() {
        let schema = config();
        let Value::Object(defaults) = serde_json::to_value(Config::default()).unwrap() else { unreachable!() };
        for key in all_keys(&defaults, "") {
            let at = key.split('.').fold(&schema, |at, part| {
                let properties = &resolve(&schema, at)["properties"];
                properties.get(part).unwrap_or_else(|| panic!("{key} is not in the schema"))
            });
            let at = resolve(&schema, at);
            assert!(["type", "oneOf", "anyOf", "enum", "const"].iter().any(|k| at.get(k).is_some()), "{key}: {at}");
        }
        let group = resolve(&schema, &schema["properties"]["train"]);
        assert_eq!(group["additionalProperties"], false);
        assert!(group["properties"]["batch_size"]["description"].as_str().unwrap().starts_with("Sequences per optimizer step"));
        assert!(sweep()["properties"]["grid"].is_object());
    }
}
