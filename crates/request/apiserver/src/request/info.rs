//! What a request is about, read from its method and path alone: verb, group, version, resource, namespace, name.
//!
//! It knows no resource: an unknown one is found out by whoever serves it. Authorisation rests on this reading, so
//! every later stage uses this one and none reads the path again.

use super::query::Query;
use http::{Method, Uri};
use keelson_api::{GroupResource, GroupVersionResource, Str};

/// Paths of resources stand below it once more.
pub const PAST: &str = "/keelson/history";

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; the lower-case method
    /// of a request that is for no resource.
    pub verb: Str,
    pub is_resource_request: bool,
    /// It is about what the resource was: the path is below [`PAST`]. Who may read the one may read the other, so all that decides on
    /// reading decides on this.
    pub past: bool,
    /// `api` or `apis`
    pub api_prefix: Str,
    pub api_group: Str,
    pub api_version: Str,
    pub resource: Str,
    pub subresource: Str,
    pub namespace: Str,
    /// Also set by a field selector `metadata.name=x` of a list or watch.
    pub name: Str,
    /// The decoded path.
    pub path: Str,
    /// The path from the resource on: `/{resource}/{name}/{subresource}/…`
    pub parts: Vec<Str>,
    /// Selectors as they came, for verbs that select.
    pub field_selector: Str,
    pub label_selector: Str,
    pub query: Query,
}

impl RequestInfo {
    /// Reads a request. An error names a path that can't be understood.
    pub fn parse(method: &Method, uri: &Uri) -> Result<RequestInfo, String> {
        let path = percent_encoding::percent_decode_str(uri.path()).decode_utf8_lossy();
        let mut info = RequestInfo {
            verb: method.as_str().to_ascii_lowercase().into(),
            path: path.as_ref().into(),
            query: Query::parse(uri.query()),
            ..Self::default()
        };
        let below = path.strip_prefix(PAST).filter(|below| below.starts_with('/'));
        let trimmed = below.unwrap_or(&path).trim_matches('/');
        let parts: Vec<&str> = trimmed.split('/').collect();
        let rest: &[&str] = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.api_version = (*version).into();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.api_group = (*group).into();
                info.api_version = (*version).into();
                rest
            }
            _ => return Ok(info),
        };
        info.is_resource_request = true;
        info.past = below.is_some();
        info.api_prefix = parts[0].into();
        info.read_resource(method, rest).map_err(|()| {
            format!(
                "unable to determine kind and namespace from url, {}",
                uri.path_and_query().map_or("", |p| p.as_str())
            )
        })?;
        Ok(info)
    }

    fn read_resource(&mut self, method: &Method, mut parts: &[&str]) -> Result<(), ()> {
        let by_path = matches!(parts[0], "watch" | "proxy");
        if by_path {
            if parts.len() < 2 {
                return Err(());
            }
            self.verb = parts[0].into();
            parts = &parts[1..];
        } else {
            self.verb = match *method {
                Method::POST => "create",
                Method::GET | Method::HEAD => "get",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "",
            }
            .into();
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            self.namespace = parts[1].into();
            if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
                parts = &parts[2..];
            }
        }
        self.parts = parts.iter().map(|p| Str::from(*p)).collect();
        self.resource = parts[0].into();
        self.name = parts.get(1).copied().unwrap_or_default().into();
        if self.verb != "proxy" {
            self.subresource = parts.get(2).copied().unwrap_or_default().into();
        }
        if self.name.is_empty() {
            match self.verb.as_str() {
                "get" => self.read_list(),
                "delete" => self.verb = "deletecollection".into(),
                _ => {}
            }
        }
        if !by_path && matches!(self.verb.as_str(), "list" | "watch" | "deletecollection") {
            self.field_selector = self.query.get("fieldSelector").unwrap_or_default().into();
            self.label_selector = self.query.get("labelSelector").unwrap_or_default().into();
        }
        Ok(())
    }

    fn read_list(&mut self) {
        self.verb = if self.query.flag("watch") { "watch" } else { "list" }.into();
        let readable = ["timeoutSeconds", "limit"]
            .iter()
            .all(|k| !matches!(self.query.int(k), Some(Err(_))));
        if readable
            && let Some(name) = self.query.get("fieldSelector").and_then(name_selected)
            && !name.is_empty()
            && !matches!(name, "." | "..")
            && !name.contains(['/', '%'])
        {
            self.name = name.into();
        }
    }

    pub fn gvr(&self) -> GroupVersionResource {
        GroupVersionResource {
            group: self.api_group.clone(),
            version: self.api_version.clone(),
            resource: self.resource.clone(),
        }
    }
    pub fn group_resource(&self) -> GroupResource {
        GroupResource {
            group: self.api_group.clone(),
            resource: self.resource.clone(),
        }
    }
    /// `pods/log`, as rules of RBAC name it.
    pub fn resource_with_sub(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_string()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
    /// Reads that change nothing.
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
    }
    /// Requests without a deadline: watches, and streams into containers and through proxies.
    pub fn is_long_running(&self) -> bool {
        if !self.is_resource_request {
            return self.path.starts_with("/debug/pprof/");
        }
        matches!(self.verb.as_str(), "watch" | "proxy")
            || matches!(
                self.subresource.as_str(),
                "attach" | "exec" | "proxy" | "log" | "portforward"
            )
    }
}

/// The name that a field selector demands by `metadata.name=x` or `==`.
fn name_selected(selector: &str) -> Option<&str> {
    selector.split(',').find_map(|term| {
        let value = term.trim().strip_prefix("metadata.name")?;
        let value = value.strip_prefix("==").or_else(|| value.strip_prefix('='))?;
        (!value.contains('\\')).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        // method, path → verb, group, version, namespace, resource, subresource, name
        let table = [
            ("GET", "/api/v1/namespaces", "list", "", "v1", "", "namespaces", "", ""),
            (
                "GET",
                "/api/v1/namespaces/other",
                "get",
                "",
                "v1",
                "other",
                "namespaces",
                "",
                "other",
            ),
            (
                "GET",
                "/api/v1/namespaces/other/pods",
                "list",
                "",
                "v1",
                "other",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/namespaces/other/pods/foo",
                "get",
                "",
                "v1",
                "other",
                "pods",
                "",
                "foo",
            ),
            (
                "HEAD",
                "/api/v1/namespaces/other/pods/foo",
                "get",
                "",
                "v1",
                "other",
                "pods",
                "",
                "foo",
            ),
            ("GET", "/api/v1/pods", "list", "", "v1", "", "pods", "", ""),
            (
                "GET",
                "/api/v1/namespaces/other/pods/foo/log",
                "get",
                "",
                "v1",
                "other",
                "pods",
                "log",
                "foo",
            ),
            (
                "PUT",
                "/api/v1/namespaces/other/finalize",
                "update",
                "",
                "v1",
                "other",
                "namespaces",
                "finalize",
                "other",
            ),
            (
                "PUT",
                "/api/v1/namespaces/other/status",
                "update",
                "",
                "v1",
                "other",
                "namespaces",
                "status",
                "other",
            ),
            (
                "GET",
                "/api/v1/proxy/namespaces/other/pods/foo",
                "proxy",
                "",
                "v1",
                "other",
                "pods",
                "",
                "foo",
            ),
            ("GET", "/api/v1/watch/pods", "watch", "", "v1", "", "pods", "", ""),
            (
                "GET",
                "/api/v1/watch/namespaces/other/pods",
                "watch",
                "",
                "v1",
                "other",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/namespaces/other/pods?watch=false",
                "list",
                "",
                "v1",
                "other",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/namespaces/other/pods?watch=1",
                "watch",
                "",
                "v1",
                "other",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/pods?fieldSelector=metadata.name%3Dx",
                "list",
                "",
                "v1",
                "",
                "pods",
                "",
                "x",
            ),
            (
                "GET",
                "/api/v1/pods?fieldSelector=metadata.name%3Da/b",
                "list",
                "",
                "v1",
                "",
                "pods",
                "",
                "",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/other/pods",
                "deletecollection",
                "",
                "v1",
                "other",
                "pods",
                "",
                "",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/other/pods/foo",
                "delete",
                "",
                "v1",
                "other",
                "pods",
                "",
                "foo",
            ),
            (
                "POST",
                "/apis/apps/v1/namespaces/other/deployments",
                "create",
                "apps",
                "v1",
                "other",
                "deployments",
                "",
                "",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/o/deployments/d/scale",
                "patch",
                "apps",
                "v1",
                "o",
                "deployments",
                "scale",
                "d",
            ),
        ];
        for (method, path, verb, group, version, namespace, resource, subresource, name) in table {
            let i = RequestInfo::parse(&method.parse().unwrap(), &path.parse().unwrap()).unwrap();
            assert!(i.is_resource_request, "{path}");
            let got = [
                &i.verb,
                &i.api_group,
                &i.api_version,
                &i.namespace,
                &i.resource,
                &i.subresource,
                &i.name,
            ];
            assert_eq!(
                got.map(|s| s.as_str()),
                [verb, group, version, namespace, resource, subresource, name],
                "{path}"
            );
        }
        for path in [
            "/",
            "/api",
            "/api/v1",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz",
            "/openapi/v3/apis/apps/v1",
        ] {
            let i = RequestInfo::parse(&Method::GET, &path.parse().unwrap()).unwrap();
            assert!(!i.is_resource_request && i.verb == "get", "{path}");
        }
        assert!(RequestInfo::parse(&Method::GET, &"/api/v1/watch".parse().unwrap()).is_err());
    }

    #[test]
    fn the_past_of_a_resource_is_read_as_the_resource_is() {
        let parse = |path: &str| RequestInfo::parse(&Method::GET, &path.parse().unwrap()).unwrap();
        for path in [
            "/apis/apps/v1/namespaces/o/deployments/d",
            "/api/v1/namespaces/o/secrets",
            "/api/v1/nodes",
        ] {
            let (now, was) = (parse(path), parse(&format!("{PAST}{path}?at=10m")));
            let same = RequestInfo {
                past: false,
                path: now.path.clone(),
                query: now.query.clone(),
                ..was.clone()
            };
            assert!(was.past && !now.past && same == now, "{path}");
        }
        for path in [PAST, "/keelson/historyapi/v1/nodes", "/keelson/history/healthz"] {
            let info = parse(path);
            assert!(!info.past && !info.is_resource_request, "{path}");
        }
    }
}
