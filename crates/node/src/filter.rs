//! Which paths a session does not materialise.
//!
//! A pattern without a slash is compared with the last name of a path, at any depth; one with a slash with the
//! whole path from the root (a leading slash is allowed). A trailing slash matches directories only. `*` and `?` stay
//! within a name, `**` crosses names. The first rule that matches decides; no match = included. What lies below
//! an excluded directory is excluded too.

use crate::api::FilterRule;
use driftless_core::Name;
use globset::{GlobBuilder, GlobMatcher};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Compiled rules.
#[derive(Default, Clone)]
pub struct Filter {
    rules: Vec<Rule>,
}

#[derive(Clone)]
struct Rule {
    include: bool,
    whole_path: bool,
    dirs_only: bool,
    glob: GlobMatcher,
}

/// A glob that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("the pattern {glob:?} is no glob: {why}")]
pub struct BadGlob {
    /// As given.
    pub glob: String,
    /// What is wrong with it.
    pub why: String,
}

impl Filter {
    /// Compiles `rules`.
    pub fn new(rules: &[FilterRule]) -> Result<Filter, BadGlob> {
        rules.iter().map(Rule::new).collect::<Result<_, _>>().map(|rules| Filter { rules })
    }

    /// True if there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// True if the path (from the root, not empty) is not to be materialised. `is_dir` is about its last name.
    pub fn hides(&self, path: &[Name], is_dir: bool) -> bool {
        if self.rules.is_empty() {
            return false;
        }
        let mut whole: Vec<u8> = Vec::new();
        for (i, name) in path.iter().enumerate() {
            if i > 0 {
                whole.push(b'/');
            }
            whole.extend_from_slice(name.as_bytes());
            let dir = is_dir || i + 1 < path.len();
            let rule = self.rules.iter().find(|r| r.matches(&whole, name.as_bytes(), dir));
            if rule.is_some_and(|r| !r.include) {
                return true;
            }
        }
        false
    }
}

/// Rules of lines as in `.gitignore`: `#` comments, `!` for what is kept although an earlier line leaves it out, `\\` before a
/// first character that is meant as it is. There the last line that matches decides, here the first rule.
pub fn of_lines(text: &str) -> Vec<FilterRule> {
    let rules = text.lines().filter_map(|line| {
        let line = match line.trim_end() {
            // The blank at the end is meant.
            cut if cut.ends_with('\\') && cut.len() < line.len() => &line[..=cut.len()],
            cut => cut,
        };
        let (include, glob) = match line.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let is_pattern = !glob.trim_matches('/').is_empty() && !line.starts_with('#');
        is_pattern.then(|| FilterRule { include, glob: glob.to_owned() })
    });
    let mut rules: Vec<FilterRule> = rules.collect();
    rules.reverse();
    rules
}

impl Rule {
    fn new(rule: &FilterRule) -> Result<Rule, BadGlob> {
        let dirs_only = rule.glob.ends_with('/');
        let body = rule.glob.trim_end_matches('/');
        let whole_path = body.contains('/');
        let glob = GlobBuilder::new(body.trim_start_matches('/'))
            .literal_separator(true)
            .build()
            .map_err(|e| BadGlob { glob: rule.glob.clone(), why: e.kind().to_string() })?;
        Ok(Rule { include: rule.include, whole_path, dirs_only, glob: glob.compile_matcher() })
    }

    fn matches(&self, whole: &[u8], name: &[u8], dir: bool) -> bool {
        let against = if self.whole_path { whole } else { name };
        (dir || !self.dirs_only) && self.glob.is_match(Path::new(OsStr::from_bytes(against)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hides(rules: &[(bool, &str)], path: &str, is_dir: bool) -> bool {
        let rules: Vec<_> = rules
            .iter()
            .map(|(include, glob)| FilterRule { include: *include, glob: (*glob).into() })
            .collect();
        let path: Vec<_> = path.split('/').map(|n| Name::new(n.as_bytes()).unwrap()).collect();
        Filter::new(&rules).unwrap().hides(&path, is_dir)
    }

    #[test]
    fn lines_are_read_as_git_does() {
        let rules = of_lines("# comment\n\n*.log\n!keep.log\n/build/\n\\#odd\r\n  \n/\ndocs/**/*.pdf  \n");
        let filter = Filter::new(&rules).unwrap();
        let hides = |path: &str, is_dir| {
            let path: Vec<_> = path.split('/').map(|n| Name::new(n.as_bytes()).unwrap()).collect();
            filter.hides(&path, is_dir)
        };
        assert_eq!(rules.len(), 5);
        assert!(hides("a/b.log", false) && !hides("a/keep.log", false));
        assert!(hides("build", true) && hides("build/keep.log", false) && !hides("a/build", true));
        assert!(!hides("build", false), "a file");
        assert!(hides("#odd", false) && hides("docs/x/y.pdf", false) && !hides("y.pdf", false));
    }

    #[test]
    fn first_match_decides_and_directories_hide_what_is_below() {
        let x = |g| [(false, g)];
        assert!(hides(&x("*.o"), "a/b.o", false));
        assert!(!hides(&x("*.o"), "a/b.c", false));
        assert!(hides(&x("target/"), "a/target/x/y", false));
        assert!(!hides(&x("target/"), "a/target", false));
        assert!(hides(&x("/a/*"), "a/b", false));
        assert!(!hides(&x("/a/*"), "c/a/b", false));
        assert!(hides(&x("/a/**/z"), "a/b/c/z", false));
        assert!(!hides(&[(true, "keep.o"), (false, "*.o")], "keep.o", false));
        assert!(hides(&[(false, "*.o"), (true, "keep.o")], "keep.o", false));
        assert!(Filter::new(&[FilterRule { include: true, glob: "a[".into() }]).is_err());
    }
}
