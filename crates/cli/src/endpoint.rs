//! Reads an end of a sync as people write it, by rsync's rules: `[user@]host:path` is another machine
//! unless a slash comes before the first colon; an IPv6 address stands in brackets.

use driftless_node::api::Endpoint;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

/// Parses one end. Paths are bytes; only the part before the colon must be text.
pub(crate) fn parse(text: &OsStr) -> Result<Endpoint, String> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return Err("an end is empty: name a directory, or [user@]host:/path".into());
    }
    let Some(colon) = remote_colon(bytes) else {
        return Ok(Endpoint::Local(PathBuf::from(text)));
    };
    let target = std::str::from_utf8(&bytes[..colon])
        .map_err(|_| "the host name is not UTF-8; write a local path with a colon as ./name".to_owned())?;
    Ok(Endpoint::Ssh { target: check_target(target)?, path: check_path(&bytes[colon + 1..])? })
}

/// Where the colon is that ends a host, if the text names a remote end.
fn remote_colon(bytes: &[u8]) -> Option<usize> {
    let start = bytes
        .iter()
        .position(|b| *b == b'@')
        .filter(|at| !bytes[..*at].contains(&b'/'))
        .map_or(0, |at| at + 1);
    if bytes.get(start) == Some(&b'[') {
        let close = start + bytes[start..].iter().position(|b| *b == b']')?;
        return (bytes.get(close + 1) == Some(&b':')).then_some(close + 1);
    }
    let colon = bytes.iter().position(|b| *b == b':')?;
    (!bytes[..colon].contains(&b'/')).then_some(colon)
}

/// ssh takes `[user@]host` and an IPv6 address without its brackets. What begins with a dash would be
/// read by ssh as an option, so it is refused here.
fn check_target(target: &str) -> Result<String, String> {
    let (user, host) = match target.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, target),
    };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let bad = |part: &str| part.is_empty() || part.starts_with('-') || part.contains(char::is_whitespace);
    if bad(host) || user.is_some_and(bad) || host.contains(char::is_control) {
        return Err(format!(
            "'{target}' is no host: write [user@]host:/path, or ./name for a local path with a colon"
        ));
    }
    Ok(user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}")))
}

fn check_path(path: &[u8]) -> Result<Vec<u8>, String> {
    match path {
        [] => {
            Err("the path after the host is empty: write host:/path, or host:. for the home directory".into())
        }
        _ if path.starts_with(b":") => {
            Err("host::module names an rsync daemon, which is not supported: write host:/path".into())
        }
        _ => Ok(path.to_vec()),
    }
}

/// As it is shown to people.
pub(crate) fn shown(end: &Endpoint) -> String {
    match end {
        Endpoint::Local(path) => path.display().to_string(),
        Endpoint::Ssh { target, path } => {
            format!("{target}:{}", OsString::from_vec(path.clone()).display())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh(target: &str, path: &[u8]) -> Result<Endpoint, String> {
        Ok(Endpoint::Ssh { target: target.into(), path: path.into() })
    }

    #[test]
    fn ends() {
        let local = |p: &str| Ok(Endpoint::Local(PathBuf::from(p)));
        for (text, want) in [
            ("/srv/a", local("/srv/a")),
            ("a", local("a")),
            ("./a:b", local("./a:b")),
            ("/a:b", local("/a:b")),
            ("dir@x/a:b", local("dir@x/a:b")),
            ("a/b@c:d", local("a/b@c:d")),
            ("host:/srv/a", ssh("host", b"/srv/a")),
            ("me@host:a:b", ssh("me@host", b"a:b")),
            ("host:.", ssh("host", b".")),
            ("[::1]:/x", ssh("::1", b"/x")),
            ("me@[fe80::1%eth0]:/x", ssh("me@fe80::1%eth0", b"/x")),
            ("[::1]/x", local("[::1]/x")),
        ] {
            assert_eq!(parse(OsStr::new(text)), want, "{text}");
        }
        assert_eq!(parse(OsStr::from_bytes(b"h:/\xff")), ssh("h", b"/\xff"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in
            ["", "host:", ":/x", "@host:/x", "-oProxyCommand=x:/x", "a@-x:/x", "host::mod", "a b:/x", "[]:/x"]
        {
            assert!(parse(OsStr::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn ends_are_shown_as_written() {
        for text in ["/srv/a", "me@host:/x"] {
            assert_eq!(shown(&parse(OsStr::new(text)).unwrap()), text);
        }
    }
}
