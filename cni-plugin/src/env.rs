//! What the runtime asks for, from the environment (specification, section "Parameters").
//!
//! DEL asks for as little as it can: cleaning up must work with what is left of a container.

use crate::error;
use bulkhead_api::messages::{AttachmentId, ErrorReply, PodRef, code};

/// A verb with all that it needs, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Add { id: AttachmentId, netns: String, pod: PodRef },
    Del { id: AttachmentId, netns: Option<String> },
    Check { id: AttachmentId, netns: String },
    Gc,
    Status,
    Version,
}

/// Linux: 16 bytes with the closing zero.
const IFNAME_MAX: usize = 15;

/// `get` reads one variable.
pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Call, ErrorReply> {
    let get = |name: &str| get(name).filter(|v| !v.is_empty());
    let command = get("CNI_COMMAND").ok_or_else(|| missing("CNI_COMMAND", "every call"))?;
    let need = |name: &str| get(name).ok_or_else(|| missing(name, &command));
    let id = || {
        let id = AttachmentId { container_id: need("CNI_CONTAINERID")?, ifname: need("CNI_IFNAME")? };
        check_container_id(&id.container_id)?;
        check_ifname(&id.ifname)?;
        Ok(id)
    };
    // The daemon opens it, and has a working directory of its own.
    let absolute = |path: &str| path.starts_with('/');
    let netns = || match need("CNI_NETNS")? {
        path if absolute(&path) => Ok(path),
        path => Err(invalid("CNI_NETNS", &path, "it must be an absolute path")),
    };
    match command.as_str() {
        "ADD" => {
            let id = id()?;
            let pod = pod(&get("CNI_ARGS").unwrap_or_default(), &id.container_id)?;
            Ok(Call::Add { netns: netns()?, pod, id })
        }
        "DEL" => Ok(Call::Del { id: id()?, netns: get("CNI_NETNS").filter(|path| absolute(path)) }),
        "CHECK" => Ok(Call::Check { id: id()?, netns: netns()? }),
        "GC" => Ok(Call::Gc),
        "STATUS" => Ok(Call::Status),
        "VERSION" => Ok(Call::Version),
        other => Err(invalid("CNI_COMMAND", other, "it must be ADD, DEL, CHECK, GC, STATUS or VERSION")),
    }
}

/// Who the pod is. Without Kubernetes the container stands for itself. Arguments for others are left alone.
fn pod(args: &str, container_id: &str) -> Result<PodRef, ErrorReply> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for pair in args.split(';').filter(|p| !p.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| invalid("CNI_ARGS", pair, "it must be KEY=VALUE pairs with `;` between them"))?;
        match key {
            "K8S_POD_NAMESPACE" => namespace = Some(value),
            "K8S_POD_NAME" => name = Some(value),
            "K8S_POD_UID" => uid = Some(value),
            _ => {}
        }
    }
    let or =
        |value: Option<&str>, default: &str| value.filter(|v| !v.is_empty()).unwrap_or(default).to_string();
    Ok(PodRef {
        namespace: or(namespace, "default"),
        name: or(name, container_id),
        uid: uid.filter(|v| !v.is_empty()).map(str::to_string),
    })
}

fn check_container_id(id: &str) -> Result<(), ErrorReply> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    match id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(inner) {
        true => Ok(()),
        false => Err(invalid(
            "CNI_CONTAINERID",
            id,
            "it must begin with a letter or digit and hold letters, digits, `_`, `.` and `-` only",
        )),
    }
}

fn check_ifname(name: &str) -> Result<(), ErrorReply> {
    let why = if name.len() > IFNAME_MAX {
        "an interface name has 15 bytes at most"
    } else if name == "." || name == ".." {
        "that is not an interface name"
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        "an interface name has no `/`, `:` or white space"
    } else {
        return Ok(());
    };
    Err(invalid("CNI_IFNAME", name, why))
}

fn missing(name: &str, command: &str) -> ErrorReply {
    error::new(
        code::INVALID_ENVIRONMENT,
        format!("environment variable {name} is missing"),
        format!("{command} needs it, and the runtime sets it"),
    )
}

fn invalid(name: &str, value: &str, why: &str) -> ErrorReply {
    error::new(
        code::INVALID_ENVIRONMENT,
        format!("environment variable {name} is invalid"),
        format!("`{value}`: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/var/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
    ];

    /// ADD's environment with these variables changed; an empty value is an absent one.
    fn with(changes: &[(&str, &str)]) -> Result<Call, ErrorReply> {
        read(|name| changes.iter().chain(&ADD).find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    fn id() -> AttachmentId {
        AttachmentId { container_id: "c1".into(), ifname: "eth0".into() }
    }

    fn netns() -> String {
        "/var/run/netns/a".into()
    }

    #[test]
    fn kubernetes_names_the_pod_and_the_container_stands_for_itself_elsewhere() {
        let pod = |args: &str| match with(&[("CNI_ARGS", args)]) {
            Ok(Call::Add { pod, .. }) => (pod.namespace, pod.name, pod.uid),
            other => panic!("{other:?}"),
        };
        let kubelet = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c1;\
                       K8S_POD_UID=af-1";
        assert_eq!(pod(kubelet), ("shop".into(), "web-1".into(), Some("af-1".into())));
        assert_eq!(pod(""), ("default".into(), "c1".into(), None));
        assert_eq!(pod("K8S_POD_NAME=;K8S_POD_UID=;"), ("default".into(), "c1".into(), None));
        assert_eq!(
            with(&[("CNI_ARGS", "K8S_POD_NAME")]).unwrap_err().details,
            "`K8S_POD_NAME`: it must be KEY=VALUE pairs with `;` between them"
        );
    }

    #[test]
    fn every_verb_has_what_it_needs_and_no_more() {
        let pod = PodRef { namespace: "default".into(), name: "c1".into(), uid: None };
        assert_eq!(with(&[]), Ok(Call::Add { id: id(), netns: netns(), pod }));
        assert_eq!(with(&[("CNI_COMMAND", "DEL")]), Ok(Call::Del { id: id(), netns: Some(netns()) }));
        for netns in ["", "not/absolute"] {
            assert_eq!(
                with(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", netns), ("CNI_ARGS", "nonsense")]),
                Ok(Call::Del { id: id(), netns: None })
            );
        }
        assert_eq!(with(&[("CNI_COMMAND", "CHECK")]), Ok(Call::Check { id: id(), netns: netns() }));
        for (text, call) in [("GC", Call::Gc), ("STATUS", Call::Status), ("VERSION", Call::Version)] {
            assert_eq!(read(|name| (name == "CNI_COMMAND").then(|| text.to_string())), Ok(call));
        }
    }

    #[test]
    fn a_missing_variable_is_named() {
        let missing = |command, name| {
            let error = with(&[("CNI_COMMAND", command), (name, "")]).unwrap_err();
            (error.code, error.msg)
        };
        let said = |name| (code::INVALID_ENVIRONMENT, format!("environment variable {name} is missing"));
        for command in ["ADD", "CHECK"] {
            for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
                assert_eq!(missing(command, name), said(name));
            }
        }
        assert_eq!(missing("DEL", "CNI_CONTAINERID"), said("CNI_CONTAINERID"));
        assert_eq!(missing("DEL", "CNI_IFNAME"), said("CNI_IFNAME"));
        assert_eq!(read(|_| None).unwrap_err().msg, "environment variable CNI_COMMAND is missing");
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        let bad = [
            ("CNI_COMMAND", vec!["add", "UPDATE"]),
            ("CNI_CONTAINERID", vec!["-a", "../a", "a/b", "a b", "ä", "."]),
            ("CNI_IFNAME", vec!["0123456789abcdef", "a/b", "a:b", "a b", "a\tb", ".", "..", "a\u{7}"]),
            ("CNI_NETNS", vec!["netns/a"]),
        ];
        for (name, values) in bad {
            for value in values {
                let error = with(&[(name, value)]).unwrap_err();
                assert_eq!(
                    (error.code, error.msg),
                    (code::INVALID_ENVIRONMENT, format!("environment variable {name} is invalid")),
                    "{value}"
                );
            }
        }
        for (name, value) in [("CNI_CONTAINERID", "a.b_c-D9"), ("CNI_IFNAME", "0123456789abcde")] {
            assert!(with(&[(name, value)]).is_ok(), "{value}");
        }
    }
}
