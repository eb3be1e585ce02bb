//! `driftless doctor`: tries out what the file system of a directory can do, and says what that means for a sync.

use crate::args::DoctorArgs;
use crate::error::{CliError, ExitCode};
use crate::print::{json_line, path, result_line};
use driftless_node::api::PathText;
use driftless_volume::{Examination, Finding, Fitness, Weight, examine};
use serde::Serialize;
use std::os::unix::ffi::OsStrExt as _;

/// Runs `driftless doctor DIR`.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let found = examine(&args.dir).map_err(|e| {
        CliError::failed(e.to_string(), "name a directory that is there and that this user may enter")
    })?;
    let shown = args.dir.as_os_str().as_bytes();
    if args.json {
        json_line(&report(shown, &found));
    } else {
        lines(&PathText::new(shown).text, &found).iter().for_each(|line| result_line(line));
    }
    Ok(match found.fitness {
        Fitness::TwoWay => ExitCode::InSync,
        Fitness::TwoWayWithLimits | Fitness::OneWayOnly => ExitCode::Waiting,
        Fitness::NotFit => ExitCode::Failed,
    })
}

#[derive(Serialize)]
struct Report<'a> {
    root: PathText,
    fs: &'a str,
    fitness: &'static str,
    reasons: &'a [&'static str],
    capabilities: Vec<Capability<'a>>,
}

#[derive(Serialize)]
struct Capability<'a> {
    name: &'static str,
    there: bool,
    value: &'a str,
    weight: &'static str,
    when_absent: &'static str,
}

fn report<'a>(dir: &[u8], found: &'a Examination) -> Report<'a> {
    let capability = |f: &'a Finding| Capability {
        name: f.name,
        there: f.there,
        value: &f.value,
        weight: weight(f.weight),
        when_absent: f.when_absent,
    };
    Report {
        root: PathText::new(dir),
        fs: &found.fs,
        fitness: found.fitness.word(),
        reasons: &found.reasons,
        capabilities: found.findings.iter().map(capability).collect(),
    }
}

fn weight(weight: Weight) -> &'static str {
    match weight {
        Weight::Note => "note",
        Weight::Limit => "limit",
        Weight::OneWay => "one_way",
        Weight::Unfit => "unfit",
    }
}

fn lines(dir: &str, found: &Examination) -> Vec<String> {
    let mut lines = vec![format!("{} ({}): {}", path(dir), found.fs, found.fitness.words())];
    lines.extend(found.reasons.iter().map(|reason| format!("  - {reason}")));
    if found.findings.is_empty() {
        return lines;
    }
    lines.push(String::new());
    let wide = found.findings.iter().map(|f| f.name.len()).max().unwrap_or(0);
    lines.extend(found.findings.iter().map(|f| row(f, wide)));
    lines
}

fn row(f: &Finding, wide: usize) -> String {
    let answer = if f.there { "yes" } else { "no" };
    let value = if f.value.is_empty() { String::new() } else { format!("({})", f.value) };
    let means = if f.there { String::new() } else { f.when_absent.to_owned() };
    let rest = [value, means].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    format!("{:wide$}  {answer:3}  {rest}", f.name).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_says_what_that_means() {
        let f = Finding {
            name: "leases",
            there: false,
            value: String::new(),
            when_absent: "open files go unnoticed",
            weight: Weight::Limit,
        };
        assert_eq!(row(&f, 8), "leases    no   open files go unnoticed");
        let f = Finding { there: true, value: "some".into(), ..f };
        assert_eq!(row(&f, 8), "leases    yes  (some)");
    }
}
