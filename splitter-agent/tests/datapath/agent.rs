//! The control loop over a real kernel: state that outlives it, policies that come, grow and let others pass, interfaces.

use super::{Node, http_service, inside, service};
use splitter_agent::control::{Control, ControlError, Loaded};
use splitter_api::{ExplainRequest, WeightRequest};
use splitter_policy::model::{Policy, Service};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn loaded(mut services: Vec<Service>) -> Loaded {
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Loaded { policy: Some(Policy { services: services.into_iter().map(Arc::new).collect() }), read: true, ..Loaded::default() }
}

fn weights(v1: u32, v2: u32) -> WeightRequest {
    WeightRequest { weights: [("v1".into(), v1), ("v2".into(), v2)].into(), dry_run: false }
}

/// Overrides, the last good policy and numbers outlive the agent; a rejected policy changes nothing.
#[test]
fn state_outlives_the_agent() {
    let node = Node::new("state");
    inside(&node.lab.node, || {
        runtime().block_on(async {
            let (control, task) = Control::start(node.settings()).await.unwrap();
            control.load(loaded(vec![service(1, [95, 5]), service(2, [1, 0])])).await;
            let change = control.set_weights("service-1", weights(50, 50), "test".into()).await.unwrap();
            assert!(change.applied && change.before["v2"] == 5 && change.after["v2"] == 50, "{change:?}");
            let error = control.set_weights("service-9", weights(1, 1), "test".into()).await.unwrap_err().to_string();
            assert!(error.contains("service-1, service-2"), "{error}");
            let before = control.status().await;
            control.shutdown().await;
            task.await.unwrap();

            let (control, task) = Control::start(node.settings()).await.unwrap();
            control.load(Loaded { errors: vec!["x.yaml:1:1: broken".into()], read: true, ..Loaded::default() }).await;
            let after = control.status().await;
            assert!(after.agent.adopted);
            assert_eq!((after.desired.state.as_str(), after.applied.services), ("rejected", 2));
            assert_eq!(after.applied.generation, before.applied.generation);
            assert_eq!((after.services[0].weights_from.as_str(), after.services[0].versions[1].weight), ("cli", 50));
            let ids = |status: &splitter_api::Status| status.services[0].versions.iter().map(|v| v.id).collect::<Vec<_>>();
            assert_eq!(ids(&after), ids(&before));
            // The same policy keeps the override, other weights drop it.
            control.load(loaded(vec![service(1, [95, 5])])).await;
            assert_eq!(control.status().await.services[0].versions[1].weight, 50);
            control.load(loaded(vec![service(1, [90, 10])])).await;
            let last = control.status().await;
            assert_eq!((last.services[0].weights_from.as_str(), last.services[0].versions[1].weight), ("policy", 10));
            control.shutdown().await;
            task.await.unwrap();
        });
    });
}

/// As long as no policy was read nobody says that it has no rollout.
#[test]
fn what_was_not_read_is_not_told() {
    let node = Node::new("unread");
    inside(&node.lab.node, || {
        runtime().block_on(async {
            let (control, task) = Control::start(node.settings()).await.unwrap();
            let unread = |said: ControlError, what: &str| {
                assert!(matches!(&said, ControlError::NotYet(message) if message.contains("the policy test ")), "{said:?}");
                assert!(said.to_string().contains(what), "{said}");
            };
            let ask = async |what: &str| {
                unread(control.rollouts().await.unwrap_err(), what);
                unread(control.rollout("service-1").await.unwrap_err(), what);
                unread(control.rollout_history("service-1").await.unwrap_err(), what);
                unread(control.set_weights("service-1", weights(1, 1), "test".into()).await.unwrap_err(), what);
            };
            ask("has not been read yet").await;
            control.load(Loaded { errors: vec!["x.yaml:1:1: broken".into()], read: true, ..Loaded::default() }).await;
            ask("was refused").await;
            for services in [vec![service(1, [1, 1])], Vec::new()] {
                control.load(loaded(services)).await;
                assert!(control.rollouts().await.unwrap().is_empty());
            }
            control.shutdown().await;
            task.await.unwrap();
        });
    });
}

/// A weight change is served before the rest of a large policy that came first, also for a service that the policy brings.
#[test]
fn a_large_policy_lets_weight_changes_pass() {
    let node = Node::new("passing");
    inside(&node.lab.node, || {
        runtime().block_on(async {
            let (control, task) = Control::start(node.settings()).await.unwrap();
            control.load(loaded((0..5_000).map(|i| service(i, [1, 1])).collect())).await;
            // By name: the first half is written in order, the last services come last.
            let order = std::cell::RefCell::new(Vec::new());
            let load = async {
                control.load(loaded((0..6_000).map(|i| service(i, [9, 1])).collect())).await;
                order.borrow_mut().push("policy");
            };
            let weigh = async |name: &'static str| {
                let change = control.set_weights(name, weights(0, 1), "test".into()).await.unwrap();
                assert_eq!((change.applied, change.before["v1"]), (true, 9), "the service is the policy's by then");
                order.borrow_mut().push(name);
            };
            let weigh_all = async {
                weigh("service-999").await;
                weigh("service-5999").await;
                let status = control.brief().await;
                assert_eq!((status.applied.services, status.applied.error), (5_000, None), "the rest is not applied yet");
            };
            tokio::join!(biased; load, weigh_all);
            assert_eq!(*order.borrow(), ["service-999", "service-5999", "policy"]);
            let status = control.status().await;
            assert_eq!((status.applied.services, status.applied.error), (6_000, None));
            let of_v1 = |name: &str| status.services.iter().find(|service| service.name == name).unwrap().versions[0].weight;
            assert_eq!(["service-999", "service-5999", "service-998"].map(of_v1), [0, 0, 9]);
            control.shutdown().await;
            task.await.unwrap();
        });
    });
}

/// An interface that appears under a running agent is served within a blink, and its pins go with it.
#[test]
fn interfaces_come_and_go() {
    let node = Node::new("hotplug");
    inside(&node.lab.node, || {
        runtime().block_on(async {
            let (control, task) = Control::start(node.settings()).await.unwrap();
            let programs = async |name: &str| {
                let status = control.status().await;
                status.interfaces.into_iter().find(|interface| interface.name == name).map(|interface| interface.programs)
            };
            let within = async |what: &str, name: &str, there: bool| {
                let begin = Instant::now();
                while programs(name).await.is_some_and(|programs| programs.contains(&"tcx-ingress".into())) != there {
                    assert!(begin.elapsed() < Duration::from_secs(3), "{what}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                begin.elapsed()
            };
            node.lab.node.batch("link add x0 type veth peer name x1\nlink set x0 up\n").unwrap();
            let time = within("x0 is served", "x0", true).await;
            assert!(time < Duration::from_millis(500), "{time:?}");
            node.lab.node.batch("link set x0 down\nlink set x0 name y0\nlink set y0 up\n").unwrap();
            within("y0 is served", "y0", true).await;
            within("x0 is gone", "x0", false).await;
            node.lab.node.batch("link del y0\n").unwrap();
            within("y0 is gone", "y0", false).await;
            let pins: Vec<_> = std::fs::read_dir(node.pins.join("links")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let left: std::collections::BTreeSet<_> =
                pins.iter().map(|name| name.to_string_lossy().split('-').next().unwrap().to_string()).collect();
            assert_eq!(left.len(), 2, "c0 and b1 alone: {pins:?}");
            control.shutdown().await;
            task.await.unwrap();
        });
    });
}

/// Larger policies than the maps were made for get larger maps, as long as nothing is in them.
#[test]
fn maps_grow_before_the_first_policy_only() {
    let node = Node::new("grow");
    inside(&node.lab.node, || {
        runtime().block_on(async {
            let (control, task) = Control::start(node.settings()).await.unwrap();
            control.load(loaded((0..6_000).map(|i| service(i, [1, 1])).collect())).await;
            let status = control.status().await;
            assert_eq!((status.applied.error, status.applied.services), (None, 6_000));
            control.load(loaded((0..40_000).map(|i| service(i, [1, 1])).collect())).await;
            let status = control.status().await;
            let error = status.applied.error.unwrap();
            assert!(error.contains("than the maps hold") && error.contains("splitter detach"), "{error}");
            assert_eq!(status.applied.services, 6_000, "the last good state stays");
            control.shutdown().await;
            task.await.unwrap();
        });
    });
}

#[test]
fn the_agent_answers_for_http_services() {
    let node = Node::new("explain");
    inside(&node.lab.node, || {
        runtime().block_on(async {
            let (control, task) = Control::start(node.settings()).await.unwrap();
            control.load(loaded(vec![http_service(7)])).await;
            let status = control.status().await;
            assert_eq!((status.services[0].mode.as_str(), status.services[0].split_by.as_str()), ("http", "request"));
            let headers = vec![("x-canary".to_owned(), "7-1".to_owned())];
            let request = ExplainRequest { service: "service-7".into(), headers, ..ExplainRequest::default() };
            let answer = control.explain(request).await.unwrap();
            assert_eq!((answer.decided_by.as_str(), answer.version.as_deref()), ("rule", Some("v2")), "{answer:?}");
            control.shutdown().await;
            task.await.unwrap();
        });
    });
}
