//! `dunlin bench --compare`: two files of runs, side by side.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::exit::{Exit, Failure};

/// What was measured, scenario by scenario: each figure's values in all runs.
type Runs = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

pub(super) fn run(files: &[PathBuf]) -> Result<(), Failure> {
    let [a, b] = files else {
        return Err(Exit::Usage.because("--compare takes two files"));
    };
    let (a, b) = (read(a)?, read(b)?);
    let table = table(&a, &b);
    if table.is_empty() {
        return Err(Exit::Data.because("the files have no scenario in common"));
    }
    print!("{table}");
    Ok(())
}

fn read(path: &Path) -> Result<Runs, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Exit::Io.because(format!("could not read {shown}: {error}")))?;
    parse(&text).map_err(|problem| Exit::Data.because(format!("{shown}: {problem}")))
}

/// One run a line, or any other way to write JSON values one after the other.
fn parse(text: &str) -> Result<Runs, String> {
    let mut runs = Runs::new();
    for run in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let run = run.map_err(|error| format!("not what a run has printed: {error}"))?;
        let bench = run["bench"].as_str();
        let bench = bench.ok_or("a value that is no run: it has no \"bench\"")?;
        let figures = runs.entry(bench.to_owned()).or_default();
        collect(&run, "", figures);
    }
    Ok(runs)
}

fn collect(value: &Value, path: &str, figures: &mut BTreeMap<String, Vec<f64>>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let dot = if path.is_empty() { "" } else { "." };
                collect(member, &format!("{path}{dot}{name}"), figures);
            }
        }
        Value::Number(number) => {
            let values = figures.entry(path.to_owned()).or_default();
            values.extend(number.as_f64());
        }
        _ => {}
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        (values[middle - 1] + values[middle]) / 2.0
    } else {
        values[middle]
    }
}

fn table(a: &Runs, b: &Runs) -> String {
    let mut table = String::new();
    for (bench, figures) in a {
        let Some(others) = b.get(bench) else {
            continue;
        };
        let runs = |figures: &BTreeMap<String, Vec<f64>>| {
            figures.values().map(Vec::len).max().unwrap_or_default()
        };
        let (first, second) = (
            format!("A ({})", runs(figures)),
            format!("B ({})", runs(others)),
        );
        let _ = writeln!(table, "{bench:36} {first:>14} {second:>14} {:>8}", "B / A");
        for (name, values) in figures {
            let Some(theirs) = others.get(name) else {
                continue;
            };
            let (a, b) = (median(values), median(theirs));
            let ratio = if a == b {
                "1.00".to_owned()
            } else if a == 0.0 {
                "-".to_owned()
            } else {
                format!("{:.2}", b / a)
            };
            let _ = writeln!(table, "  {name:34} {a:>14.2} {b:>14.2} {ratio:>8}");
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_the_same_figures_stand_side_by_side() {
        let a = "{\"bench\":\"x\",\"n\":1,\"t\":{\"p\":10},\"only\":1}\n{\"bench\":\"x\",\"n\":3,\"t\":{\"p\":30}}\n{\"bench\":\"y\"}";
        let b = "{\"bench\":\"x\",\"n\":4,\"t\":{\"p\":10},\"text\":\"t\"}";
        let table = table(&parse(a).unwrap(), &parse(b).unwrap());
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["x", "A", "(2)", "B", "(1)", "B", "/", "A"]);
        assert_eq!(lines[1], ["n", "2.00", "4.00", "2.00"]);
        assert_eq!(lines[2], ["t.p", "20.00", "10.00", "0.50"]);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn what_is_no_run_is_refused() {
        assert!(parse("{\"a\":1}").unwrap_err().contains("no \"bench\""));
        assert!(parse("{").unwrap_err().contains("not what a run"));
        assert!(parse("").unwrap().is_empty());
    }
}
