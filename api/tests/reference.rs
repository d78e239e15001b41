//! `docs/reference.md` is what the types say. `make crds` writes it anew.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use bulkhead_api::crds::crds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use std::{env, fmt::Write, fs, path::Path};

const WRITE: &str = "BULKHEAD_WRITE_CRDS";
const HEAD: &str = "# Reference of all kinds\n\nMade from the types (`make crds`). `bulkhead.dev/v1alpha1`; \
    `*` marks what must be there, `[]` a list. What fields mean together is told in the [user guide](user-guide.md).\n";

fn reference() -> String {
    crds().iter().fold(HEAD.to_string(), |text, crd| text + &section(crd))
}

fn section(crd: &CustomResourceDefinition) -> String {
    let (names, version) = (&crd.spec.names, &crd.spec.versions[0]);
    let mut text = format!("\n## {}\n\n", names.kind);
    let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()).unwrap();
    if let Some(about) = &schema.description {
        writeln!(text, "{about}\n").unwrap();
    }
    let short = names.short_names.iter().flatten().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    let scope = crd.spec.scope.to_lowercase();
    writeln!(text, "Scope: {scope}. `kubectl get {}`, short {short}.\n", names.plural).unwrap();
    writeln!(text, "| field | type | meaning |\n| --- | --- | --- |").unwrap();
    for part in ["spec", "status"] {
        if let Some(schema) = schema.properties.iter().flatten().find_map(|(n, s)| (n == part).then_some(s)) {
            fields(&mut text, part, schema);
        }
    }
    text
}

/// A row for each field, each before what is in it.
fn fields(text: &mut String, path: &str, schema: &JSONSchemaProps) {
    let required = schema.required.as_deref().unwrap_or_default();
    for (name, field) in schema.properties.iter().flatten() {
        let mark = if required.contains(name) { " \\*" } else { "" };
        let at = format!("{path}.{name}");
        let about = field.description.as_deref().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
        writeln!(text, "| `{at}`{mark} | {} | {about} |", kind(field)).unwrap();
        within(text, &at, field);
    }
}

fn within(text: &mut String, at: &str, schema: &JSONSchemaProps) {
    fields(text, at, schema);
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
        within(text, &format!("{at}[]"), item);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &schema.additional_properties {
        within(text, &format!("{at}.*"), value);
    }
}

fn kind(schema: &JSONSchemaProps) -> String {
    if schema.x_kubernetes_int_or_string == Some(true) {
        return "integer or string".into();
    }
    if let Some(values) = &schema.enum_ {
        return values.iter().filter_map(|v| v.0.as_str()).collect::<Vec<_>>().join(", ");
    }
    match (&schema.items, &schema.additional_properties) {
        (Some(JSONSchemaPropsOrArray::Schema(item)), _) => format!("{}[]", kind(item)),
        (_, Some(JSONSchemaPropsOrBool::Schema(value))) => format!("map of {}", kind(value)),
        _ => schema.type_.clone().unwrap_or_default(),
    }
}

#[test]
fn the_reference_is_what_the_types_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    if env::var_os(WRITE).is_some() {
        fs::write(&path, reference()).unwrap();
    }
    assert!(fs::read_to_string(path).unwrap() == reference(), "docs/reference.md: run `make crds`");
}
