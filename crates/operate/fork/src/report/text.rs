//! The report, for people.

use super::{Change, Pod, Report, What, Workload};
use std::fmt::Write as _;

/// So many pods of a workload are told of one by one.
const PODS: usize = 30;

impl Report {
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.objects(&mut text);
        if !self.workloads.is_empty() {
            text += "pods\n";
            self.workloads.iter().for_each(|workload| told(&mut text, workload));
        }
        lines(
            &mut text,
            "stay on a node that is closed to pods",
            &self.stays,
            |stay| {
                let why = match stay.budgets.is_empty() {
                    true => "no budget holds it".to_owned(),
                    false => format!("held by the budget {}", stay.budgets.join(", ")),
                };
                format!("{:<16} {}: {why}", stay.node, stay.pod)
            },
        );
        lines(
            &mut text,
            "budgets that allow no disruption any more",
            &self.budgets,
            Clone::clone,
        );
        lines(&mut text, "refused or complained of", &self.warnings, |warning| {
            format!("{}: {}: {}", warning.about, warning.reason, warning.message.trim())
        });
        if text.is_empty() {
            text += "nothing changed\n";
        }
        text
    }

    fn objects(&self, text: &mut String) {
        if !self.changes.is_empty() {
            *text += "objects\n";
        }
        for Change { what, object, fields } in &self.changes {
            let what = match what {
                What::Create => "create",
                What::Change => "change",
                What::Delete => "delete",
            };
            let _ = writeln!(text, "  {what:<8} {object}");
            fields
                .iter()
                .for_each(|field| _ = writeln!(text, "             {field}"));
        }
        if !self.kept.is_empty() {
            let each = self.kept.iter().map(|(resource, many)| format!("{many} {resource}"));
            let each: Vec<_> = each.collect();
            let _ = writeln!(text, "  and what controllers keep: {}", each.join(", "));
        }
    }
}

fn lines<T>(text: &mut String, title: &str, all: &[T], line: impl Fn(&T) -> String) {
    if !all.is_empty() {
        let _ = writeln!(text, "{title}");
        all.iter().for_each(|one| _ = writeln!(text, "  {}", line(one)));
    }
}

fn told(text: &mut String, workload: &Workload) {
    let Workload { owner, pods } = workload;
    let count = |is: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| is(pod)).count();
    let (gone, waiting) = (count(&|pod| pod.is_gone), count(&|pod| pod.waits.is_some()));
    let here = pods.len() - gone - waiting;
    let parts = [(gone, "go"), (here, "come"), (waiting, "wait")];
    let parts = parts.iter().filter(|(many, _)| *many > 0);
    let parts: Vec<_> = parts.map(|(many, what)| format!("{many} {what}")).collect();
    let _ = writeln!(text, "  {owner}: {}", parts.join(", "));
    for pod in pods.iter().take(PODS) {
        let before = pod.before.as_ref().map(|node| format!("{node} ")).unwrap_or_default();
        let after = match (&pod.after, &pod.waits) {
            (Some(node), _) => node.clone(),
            (None, Some(why)) => format!("waits: {why}"),
            (None, None) => "gone".to_owned(),
        };
        let _ = writeln!(text, "    {:<40} {before}-> {after}", pod.name);
        if !pod.missing.is_empty() {
            let _ = writeln!(text, "      would not start without {}", pod.missing.join(", "));
        }
    }
    if pods.len() > PODS {
        let _ = writeln!(text, "    and {} more", pods.len() - PODS);
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;

    #[test]
    fn it_reads_as_what_would_happen() {
        assert_eq!(Report::default().text(), "nothing changed\n");
        let pod = |name: &str, before: Option<&str>, after: Option<&str>| Pod {
            name: name.into(),
            before: before.map(Into::into),
            after: after.map(Into::into),
            is_gone: after.is_none(),
            ..Pod::default()
        };
        let waiting = Pod {
            waits: Some("0/2 nodes are available".into()),
            missing: vec!["configmaps a".into()],
            ..Pod {
                is_gone: false,
                ..pod("web-c", None, None)
            }
        };
        let key = |resource: &str, name: &str| Key {
            resource: resource.into(),
            namespace: "shop".into(),
            name: name.into(),
        };
        let report = Report {
            changes: vec![Change {
                what: What::Change,
                object: key("deployments.apps", "web"),
                fields: vec!["spec.replicas: 2 -> 3".into()],
            }],
            kept: BTreeMap::from([("replicasets.apps".into(), 1)]),
            workloads: vec![Workload {
                owner: "deployment shop/web".into(),
                pods: vec![pod("web-a", Some("n1"), None), pod("web-b", None, Some("n2")), waiting],
            }],
            stays: vec![Stay {
                node: "n1".into(),
                pod: "shop/db-0".into(),
                budgets: vec!["db (1 healthy, 1 needed)".into()],
            }],
            budgets: Vec::new(),
            warnings: vec![Warning {
                about: "replicaset shop/web-1".into(),
                reason: "FailedCreate".into(),
                message: "exceeded quota\n".into(),
            }],
        };
        let expected = "\
objects
  change   deployments.apps shop/web
             spec.replicas: 2 -> 3
  and what controllers keep: 1 replicasets.apps
pods
  deployment shop/web: 1 go, 1 come, 1 wait
    web-a                                    n1 -> gone
    web-b                                    -> n2
    web-c                                    -> waits: 0/2 nodes are available
      would not start without configmaps a
stay on a node that is closed to pods
  n1               shop/db-0: held by the budget db (1 healthy, 1 needed)
refused or complained of
  replicaset shop/web-1: FailedCreate: exceeded quota
";
        assert_eq!(report.text(), expected);
    }
}
