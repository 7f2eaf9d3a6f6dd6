//! Jobs and CronJobs: how often, when, and for how long they are kept.

use jiff::Timestamp;
use keelson_testkit::objects::{ApiObject, CronJob, Job, Pod, is_active, is_finished, job_condition, node_of, phase};
use keelson_testkit::{Cluster, seconds, secs};

fn job(name: &str, spec: &str, command: &str) -> String {
    format!(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  {spec}
  template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: i, command: [sh, -c, "{command}"]}}]}}}}
"#
    )
}

fn failed(job: &Job) -> bool {
    job_condition(job, "Failed").is_some()
}

fn complete(job: &Job) -> bool {
    job_condition(job, "Complete").is_some()
}

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_tries_again_ever_more_rarely_and_gives_up() {
    let cluster = Cluster::builder().nodes(1).start().await;
    let pods = cluster.history::<Pod>("default").await;
    cluster.apply(&job("sum", "backoffLimit: 3", "sleep 1; exit 1")).await;
    let ended: Job = cluster.until("default", "sum", secs(600), "has failed", failed).await;
    assert_eq!(job_condition(&ended, "Failed").as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!(ended.status.as_ref().and_then(|s| s.failed), Some(4));
    let created: Vec<Timestamp> = pods.record().await.added().iter().map(|(at, _)| *at).collect();
    assert_eq!(created.len(), 4, "one try and three more");
    // A pod runs for a second; the wait begins at its end, and ends are told in whole seconds.
    let waited: Vec<i64> = created.windows(2).map(|w| seconds(w[0], w[1]) - 1).collect();
    for (waited, wanted) in waited.iter().zip([10, 20, 40]) {
        assert!(
            (wanted - 1..=wanted + 1).contains(waited),
            "{waited} s instead of {wanted}"
        );
    }
    cluster.sleep(secs(600)).await;
    assert_eq!(pods.record().await.added().len(), 4, "given up is given up");
}

#[tokio::test(start_paused = true)]
async fn a_job_ends_at_its_deadline_and_so_do_its_pods() {
    let cluster = Cluster::builder().nodes(1).start().await;
    cluster
        .apply(&job("long", "activeDeadlineSeconds: 30", "sleep 1000"))
        .await;
    let ended: Job = cluster.until("default", "long", secs(60), "has failed", failed).await;
    assert_eq!(job_condition(&ended, "Failed").as_deref(), Some("DeadlineExceeded"));
    let status = ended.status.expect("a status");
    let start = status.start_time.expect("a start").0;
    let failed_at = status.conditions.iter().flatten().find(|c| c.type_ == "Failed");
    let at = failed_at
        .and_then(|c| c.last_transition_time.clone())
        .expect("a time")
        .0;
    let after = seconds(start, at);
    // Its pods are gone before the job is told to have failed, and take no time to go.
    assert!((30..=31).contains(&after), "failed after {after} s");
    cluster
        .until_all("default", secs(60), "no pod runs", |pods: &[Pod]| {
            pods.iter().all(is_finished).then_some(())
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_finished_job_goes_when_its_time_to_live_is_over() {
    let cluster = Cluster::builder().nodes(1).start().await;
    let jobs = cluster.history::<Job>("default").await;
    cluster
        .apply(&job("brief", "ttlSecondsAfterFinished: 100", "sleep 5"))
        .await;
    let done: Job = cluster
        .until("default", "brief", secs(60), "is complete", complete)
        .await;
    let end = done.status.and_then(|s| s.completion_time).expect("an end").0;
    cluster
        .stays("the job is kept", secs(98), async || {
            let found = cluster.objects::<Job>().find("default", "brief").await;
            found
                .map_err(|e| e.to_string())?
                .map(drop)
                .ok_or("it is gone".to_string())
        })
        .await;
    cluster.gone::<Job>("default", "brief", secs(5)).await;
    let after = seconds(end, jobs.record().await.deleted()[0].0);
    assert!((100..=101).contains(&after), "gone {after} s after its end");
    cluster
        .until_all("default", secs(10), "its pod goes with it", |pods: &[Pod]| {
            pods.is_empty().then_some(())
        })
        .await;
}

fn cron_job(name: &str, spec: &str, command: &str) -> String {
    format!(
        r#"
apiVersion: batch/v1
kind: CronJob
metadata: {{name: {name}}}
spec:
  schedule: "* * * * *"
  {spec}
  jobTemplate:
    spec:
      backoffLimit: 0
      template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: i, command: [sh, -c, "{command}"]}}]}}}}
"#
    )
}

#[tokio::test(start_paused = true)]
async fn a_cron_job_starts_each_minute_and_keeps_as_many_jobs_as_it_is_told() {
    let cluster = Cluster::builder().nodes(1).start().await;
    let jobs = cluster.history::<Job>("default").await;
    cluster
        .apply(&cron_job("good", "successfulJobsHistoryLimit: 2", "sleep 5"))
        .await;
    cluster
        .apply(&cron_job("bad", "failedJobsHistoryLimit: 1", "sleep 5; exit 1"))
        .await;
    cluster.sleep(secs(6 * 60 + 30)).await;
    let jobs = jobs.record().await;
    for (owner, kept) in [("good", 2), ("bad", 1)] {
        let prefix = format!("{owner}-");
        let of = |job: &Job| job.name().starts_with(&prefix);
        let started: Vec<i64> = jobs
            .added()
            .iter()
            .filter(|(_, j)| of(j))
            .map(|(at, _)| at.as_second() % 60)
            .collect();
        assert_eq!(started, vec![0; 6], "{owner}: six jobs, each at the full minute");
        let left: Vec<_> = jobs.now().into_values().filter(|j| of(j)).collect();
        assert_eq!(
            left.len(),
            kept,
            "{owner}: {:?}",
            left.iter().map(|j| j.name()).collect::<Vec<_>>()
        );
        let latest = jobs.added().into_iter().rev().find(|(_, j)| of(j)).expect("a job").1;
        assert!(
            left.iter().any(|j| j.uid() == latest.uid()),
            "{owner}: the latest is kept"
        );
    }
    let good: CronJob = cluster.get("default", "good").await;
    let last = good.status.and_then(|s| s.last_schedule_time).expect("a last time").0;
    assert_eq!(last.to_string(), "2030-01-01T00:06:00Z");
}

#[tokio::test(start_paused = true)]
async fn concurrency_policies_hold() {
    let cluster = Cluster::builder().nodes(1).start().await;
    let jobs = cluster.history::<Job>("default").await;
    cluster
        .apply(&cron_job("forbid", "concurrencyPolicy: Forbid", "sleep 90"))
        .await;
    cluster
        .apply(&cron_job("replace", "concurrencyPolicy: Replace", "sleep 90"))
        .await;
    cluster.sleep(secs(5 * 60 + 30)).await;
    let jobs = jobs.record().await;
    let started = |owner: &str| -> Vec<i64> {
        let added = jobs.added();
        let of = added.iter().filter(|(_, j)| j.name().starts_with(owner));
        of.map(|(at, _)| (at.as_second() - added[0].0.as_second()) / 30)
            .collect()
    };
    // In half minutes since the first: what was held back starts when the one before has ended.
    assert_eq!(started("forbid"), [0, 3, 6]);
    assert_eq!(started("replace"), [0, 2, 4, 6, 8]);
    jobs.replay(|at, state| {
        for owner in ["forbid", "replace"] {
            let of = state.values().filter(|j| j.name().starts_with(owner));
            let active = of.filter(|j| !complete(j) && !failed(j) && !j.is_deleting()).count();
            assert!(active <= 1, "{active} jobs of {owner} at {at}");
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_cron_job_catches_up_with_one_job_only() {
    let mut cluster = Cluster::builder().nodes(1).start().await;
    cluster.apply(&cron_job("late", "", "sleep 5")).await;
    let strict = "startingDeadlineSeconds: 20";
    cluster.apply(&cron_job("strict", strict, "sleep 5")).await;
    cluster.sleep(secs(90)).await;
    cluster.kill_controllers();
    cluster.sleep(secs(6 * 60)).await;
    let jobs = cluster.history::<Job>("default").await;
    let known = jobs.record().await.added().len();
    assert_eq!(known, 2, "one each while the controllers lived");
    // It is half past: the last full minute was thirty seconds ago.
    cluster.start_controllers();
    cluster.sleep(secs(20)).await;
    let caught_up: Vec<String> = jobs.record().await.added()[known..]
        .iter()
        .map(|(_, j)| j.name().to_owned())
        .collect();
    let minute = |minutes: i64| {
        let epoch: Timestamp = keelson_testkit::cluster::EPOCH.parse().expect("a date");
        epoch.as_second() / 60 + minutes
    };
    assert_eq!(caught_up, [format!("late-{}", minute(7))]);
    cluster.sleep(secs(60)).await;
    let mut next: Vec<String> = jobs.record().await.added()[known + 1..]
        .iter()
        .map(|(_, j)| j.name().to_owned())
        .collect();
    next.sort();
    assert_eq!(next, [format!("late-{}", minute(8)), format!("strict-{}", minute(8))]);
}

#[tokio::test(start_paused = true)]
async fn an_indexed_job_runs_each_index_and_fails_those_that_fail() {
    let cluster = Cluster::builder().nodes(2).start().await;
    let pods = cluster.history::<Pod>("default").await;
    let spec = "completions: 4, parallelism: 1, completionMode: Indexed, backoffLimitPerIndex: 1, maxFailedIndexes: 4";
    let spec = spec.replace(", ", "\n  ");
    cluster.apply(&job("parts", &spec, "sleep 3")).await;
    let bad = |pod: &Pod| {
        let labels = pod.metadata.labels.iter().flatten();
        labels
            .into_iter()
            .any(|(k, v)| k == "batch.kubernetes.io/job-completion-index" && v == "2")
    };
    // Index 2 dies as soon as it runs.
    for tries in 1..=2 {
        cluster
            .until_all("default", secs(120), "index 2 runs", |pods: &[Pod]| {
                let tried = pods.iter().filter(|p| bad(p)).count() == tries;
                let runs = pods.iter().any(|p| bad(p) && phase(p) == "Running");
                (tried && runs).then_some(())
            })
            .await;
        let running: Vec<Pod> = cluster.list("default").await;
        let pod = running
            .iter()
            .find(|p| bad(p) && phase(p) == "Running")
            .expect("it runs");
        // One runs at a time: it alone is hit.
        cluster.node(node_of(pod)).runtime.crash("c", 7);
    }
    let ended: Job = cluster.until("default", "parts", secs(200), "has failed", failed).await;
    assert_eq!(job_condition(&ended, "Failed").as_deref(), Some("FailedIndexes"));
    let status = ended.status.expect("a status");
    assert_eq!(status.completed_indexes.as_deref(), Some("0,1,3"));
    assert_eq!(status.failed_indexes.as_deref(), Some("2"));
    assert_eq!(pods.record().await.added().len(), 5, "four, and one more try");
}

#[tokio::test(start_paused = true)]
async fn a_suspended_job_has_no_pods_and_its_time_does_not_run() {
    let cluster = Cluster::builder().nodes(1).start().await;
    let spec = "completions: 2\n  parallelism: 2\n  activeDeadlineSeconds: 50";
    cluster.apply(&job("slow", spec, "sleep 40")).await;
    let running = |n: usize| move |pods: &[Pod]| (pods.iter().filter(|p| is_active(p)).count() == n).then_some(());
    cluster.until_all("default", secs(30), "two run", running(2)).await;
    cluster.sleep(secs(20)).await;
    let suspend = async |suspend: bool| {
        let _: Job = cluster
            .patch("default", "slow", serde_json::json!({"spec": {"suspend": suspend}}))
            .await;
    };
    suspend(true).await;
    cluster.until_all("default", secs(60), "none runs", running(0)).await;
    let job: Job = cluster
        .until("default", "slow", secs(5), "is told", |j| {
            job_condition(j, "Suspended").is_some() && j.status.as_ref().is_some_and(|s| s.start_time.is_none())
        })
        .await;
    assert_eq!(
        job.status.and_then(|s| s.failed),
        None,
        "a pod that was taken away hasn't failed"
    );
    cluster.sleep(secs(300)).await;
    suspend(false).await;
    cluster
        .until("default", "slow", secs(49), "is complete", complete)
        .await;
}

#[tokio::test(start_paused = true)]
async fn every_schedule_that_is_accepted_runs_or_says_why_not() {
    // Jobs are counted, and hours of a node are long.
    let cluster = Cluster::builder().nodes(0).start().await;
    let jobs = cluster.history::<Job>("default").await;
    let schedules = [
        ("step", "0/15 * * * *"),
        ("marks", "30 ? * * ?"),
        ("hourly", "@hourly"),
        ("every", "@every 45m"),
        ("never", "59 23 31 2 *"),
    ];
    for (name, schedule) in schedules {
        let yaml = cron_job(name, "suspend: false", "exit 0").replace("* * * * *", schedule);
        cluster.apply(&yaml).await;
    }
    cluster.sleep(secs(30)).await;
    // Events are kept for an hour only.
    let events = cluster.events("default").await;
    let told = events
        .iter()
        .find(|e| e.reason.as_deref() == Some("InvalidSchedule"))
        .expect("an event");
    assert_eq!(
        told.message.as_deref(),
        Some("invalid schedule: 59 23 31 2 * : time difference between two schedules is less than 1 second")
    );
    cluster.sleep(secs(3 * 3600)).await;
    let jobs = jobs.record().await;
    let count = |owner: &str| {
        let prefix = format!("{owner}-");
        let added = jobs.added();
        added.iter().filter(|(_, j)| j.name().starts_with(&prefix)).count()
    };
    assert_eq!(count("step"), 3 * 4);
    assert_eq!(count("marks"), 3);
    assert_eq!(count("hourly"), 3);
    assert_eq!(count("every"), 3 * 60 / 45);
    assert_eq!(count("never"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_edited_schedule_waits_for_its_next_start() {
    let cluster = Cluster::builder().nodes(1).start().await;
    let jobs = cluster.history::<Job>("default").await;
    cluster
        .apply(&cron_job("edit", "suspend: false", "exit 0").replace("* * * * *", "0 3 * * *"))
        .await;
    cluster.sleep(secs(7200 + 600)).await;
    // 01:00 lies between the creation and now, but wasn't meant when it passed.
    cluster
        .apply(&cron_job("edit", "suspend: false", "exit 0").replace("* * * * *", "0 1 * * *"))
        .await;
    cluster.sleep(secs(300)).await;
    assert!(jobs.record().await.added().is_empty(), "an edit starts nothing");
}
