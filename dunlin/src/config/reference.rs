//! The reference page of the configuration, made from the types that are read.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::file::File;
use super::{Dev, Gateway, Node};

/// Defaults that are no values: command, key, and how to put it.
const IN_WORDS: [(&str, &str, &str); 9] = [
    (
        "dev",
        "apps",
        "one for development: `app-id`, `app-key`, `app-secret`",
    ),
    ("gateway", "apps", "required"),
    (
        "gateway",
        "name",
        "the host's name and the port of `listen`",
    ),
    ("dev", "limits", "see below"),
    ("gateway", "limits", "see below"),
    ("node", "name", "the host's name"),
    ("node", "data", "required"),
    ("node", "certs", "required"),
    ("node", "quic_advertise", "as `quic`"),
];

/// A command's keys and their defaults.
struct Column {
    command: &'static str,
    keys: Value,
    defaults: Value,
}

impl Column {
    fn of<T: JsonSchema + Serialize>(command: &'static str, example: Result<T, String>) -> Self {
        let defaults = example.map(|example| serde_json::to_value(example).unwrap_or_default());
        Self {
            command,
            keys: schemars::schema_for!(T).to_value()["properties"].take(),
            defaults: defaults.unwrap_or_default(),
        }
    }

    fn cell(&self, key: &str) -> String {
        if self.keys.get(key).is_none() {
            return "–".into();
        }
        let in_words = IN_WORDS
            .iter()
            .find(|(command, word, _)| (*command, *word) == (self.command, key));
        match (in_words, &self.defaults[key]) {
            (Some((_, _, words)), _) => (*words).to_owned(),
            (None, Value::Null) => "none".to_owned(),
            (None, value) => format!("`{value}`"),
        }
    }
}

/// The page.
pub(crate) fn page() -> String {
    let schema = schemars::schema_for!(File).to_value();
    let mut page = String::from(
        "# Configuration\n\nFlags overrule the environment, which overrules the file, which overrules the defaults. \
         The file is TOML and named by `--config` or `DUNLIN_CONFIG`. A key `some_key` is the flag `--some-key` and the variable \
         `DUNLIN_SOME_KEY`; apps are `--app` and `DUNLIN_APPS`, limits and namespaces stand in the file alone. \
         `dunlin config`, or `dunlin config gateway` and `dunlin config node`, prints the result, secrets masked.\n\n\
         One file can serve all commands: keys that a command does not use are checked and otherwise ignored. \
         A key that no command has or a wrong value is refused, with file, line, key and what was expected (exit code 78).\n\n\
         ## Top level\n\nThe columns of the commands have their defaults; – is a key that a command does not use.\n",
    );
    let columns = columns();
    page.push_str("\n| key | dev | gateway | node | meaning |\n|---|---|---|---|---|\n");
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let cells: Vec<String> = columns.iter().map(|column| column.cell(key)).collect();
        let _ = writeln!(
            page,
            "| `{key}` | {} | {} |",
            cells.join(" | "),
            meaning(property)
        );
    }
    for (section, definition) in [
        ("`[[apps]]`", "AppConfig"),
        ("`[limits]`", "LimitsConfig"),
        ("`[[namespaces]]`", "NamespaceConfig"),
    ] {
        let schema = &schema["$defs"][definition];
        let _ = write!(page, "\n## {section}\n\n{}\n", meaning(schema));
        section_table(&mut page, schema);
    }
    page
}

fn columns() -> [Column; 3] {
    let required = "apps = [{ id = \"a\", key = \"k\", secret = \"s\" }]\nname = \"n\"\ndata = \"d\"\ncerts = \"c\"\n";
    let file = File::parse(required).unwrap_or_default();
    [
        Column::of("dev", Dev::from_file(&file)),
        Column::of("gateway", Gateway::from_file(&file)),
        Column::of("node", Node::from_file(&file)),
    ]
}

fn meaning(schema: &Value) -> String {
    let text = schema["description"].as_str();
    text.unwrap_or_default().replace('\n', " ")
}

fn section_table(page: &mut String, schema: &Value) {
    page.push_str("\n| key | default | meaning |\n|---|---|---|\n");
    let required = schema["required"].as_array();
    let is_required = |key: &str| {
        required
            .into_iter()
            .flatten()
            .any(|name| name.as_str() == Some(key))
    };
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let default = match &property["default"] {
            _ if is_required(key) => "required".to_owned(),
            Value::Null => "none".to_owned(),
            value => format!("`{value}`"),
        };
        let _ = writeln!(page, "| `{key}` | {default} | {} |", meaning(property));
    }
}
