//! Tokens, certificates and the lease against a real API server.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use sidescope::election::{Holder, Leader};
use sidescope::lease;
use sidescope::model::time::Time;
use sidescope::trust::store::{BUNDLE_KEY, Store};
use sidescope::trust::tokens::{AUDIENCE, Refused, Tokens};
use sidescope_tests::cluster::{Cluster, Parts};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const DAY: i64 = 24 * 3_600_000;

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Time(i64::try_from(since.as_millis()).expect("before the year 292,278,994"))
}

async fn token(client: &Client, account: &str, audience: &str, pod: Option<&Pod>) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let mut request = TokenRequest::default();
    request.spec.audiences = vec![audience.to_owned()];
    request.spec.bound_object_ref = pod.map(|pod| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    });
    let made = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    Ok(made.status.context("no token")?.token)
}

#[test]
fn a_token_tells_its_node_and_others_are_refused() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    cluster.make_node("node-1")?;
    for account in ["agent", "other"] {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: default}}\n"
        ))?;
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {account}-x, namespace: default}}\n\
             spec: {{nodeName: node-1, serviceAccountName: {account}, containers: [{{name: a, image: none}}]}}\n"
        ))?;
    }
    let client = cluster.client();
    cluster.run(async {
        let pods: Api<Pod> = Api::default_namespaced(client.clone());
        let (pod, others) = (pods.get("agent-x").await?, pods.get("other-x").await?);
        let tokens = || Tokens::new(client.clone(), "default", "agent");
        let good = token(&client, "agent", AUDIENCE, Some(&pod)).await?;
        let reporter = tokens().authenticate(&good).await?;
        assert_eq!((reporter.node.as_str(), reporter.pod.as_str()), ("node-1", "agent-x"));
        assert_eq!(Some(reporter.pod_uid.as_str()), pod.metadata.uid.as_deref());

        let elsewhere = token(&client, "agent", "vault", Some(&pod)).await?;
        assert_eq!(tokens().authenticate(&elsewhere).await, Err(Refused::Audience));
        let foreign = token(&client, "other", AUDIENCE, Some(&others)).await?;
        assert_eq!(
            tokens().authenticate(&foreign).await,
            Err(Refused::Account("system:serviceaccount:default:other".to_owned()))
        );
        let unbound = token(&client, "agent", AUDIENCE, None).await?;
        assert_eq!(tokens().authenticate(&unbound).await, Err(Refused::WithoutNode("node")));
        let (head, _) = good.rsplit_once('.').context("a token has three parts")?;
        for bad in [&format!("{head}.AAAA"), "garbage"] {
            let refused = tokens().authenticate(bad).await;
            assert!(matches!(refused, Err(Refused::Invalid(_))), "{refused:?}");
        }
        // With its pod goes its token, as soon as the API server has forgotten its own answer.
        pods.delete("agent-x", &DeleteParams::default().grace_period(0)).await?;
        let since = Instant::now();
        while tokens().authenticate(&good).await.is_ok() {
            ensure!(since.elapsed() < Duration::from_secs(60), "the token of a pod that is gone is good");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let refused = tokens().authenticate(&good).await;
        assert!(matches!(refused, Err(Refused::Invalid(_))), "{refused:?}");
        anyhow::Ok(())
    })?;
    cluster.end()
}

#[test]
fn replicas_agree_on_certificates_and_renew_them() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    let client = cluster.client();
    cluster.run(async {
        let store = |secret: &str| Store {
            client: client.clone(),
            namespace: "default".to_owned(),
            secret: secret.to_owned(),
            config_map: format!("{secret}-ca"),
            names: vec!["sidescope.default.svc".to_owned()],
        };
        let stores = [store("tls"), store("tls"), store("tls"), store("tls")];
        let [a, b, c, d] = &stores;
        let (a, b, c, d) =
            tokio::join!(a.maintain(now()), b.maintain(now()), c.maintain(now()), d.maintain(now()));
        let first = a?;
        for other in [b?, c?, d?] {
            assert!(first == other, "all have the same");
        }
        let secrets: Api<Secret> = Api::default_namespaced(client.clone());
        let config_maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let bundle = async || {
            let data = config_maps.get("tls-ca").await?.data;
            anyhow::Ok(data.and_then(|mut data| data.remove(BUNDLE_KEY)))
        };
        assert_eq!(bundle().await?, Some(first.bundle()));

        let version = secrets.get("tls").await?.resource_version();
        assert!(store("tls").maintain(now()).await? == first);
        assert_eq!(secrets.get("tls").await?.resource_version(), version, "nothing was written");
        let later = store("tls").maintain(now().plus(250 * DAY)).await?;
        assert!(later.successor.is_some() && later.server != first.server);
        assert_eq!(bundle().await?, Some(later.bundle()));

        // What somebody else keeps under this name stays.
        let foreign: Secret = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs"},
            "stringData": {"tls.crt": "a certificate"},
        }))?;
        secrets.create(&PostParams::default(), &foreign).await?;
        let err = store("theirs").maintain(now()).await.err().context("an error")?.to_string();
        assert!(err.contains("default/theirs") && err.contains("tls.key"), "{err}");
        assert_eq!(secrets.get("theirs").await?.data.context("its data")?.len(), 1);
        anyhow::Ok(())
    })?;
    cluster.end()
}

struct Replica {
    address: std::net::SocketAddr,
    leader: watch::Receiver<Leader>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(client: &Client, name: &str, address: &str) -> Result<Self> {
        let me = Holder { name: name.to_owned(), address: address.parse()? };
        let address = me.address;
        let config = lease::Config {
            client: client.clone(),
            namespace: "default".to_owned(),
            name: "sidescope".to_owned(),
            me,
        };
        let (tell, leader) = watch::channel(Leader::Unknown);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(lease::run(config, tell, async move { drop(stopped.await) }));
        Ok(Self { address, leader, stop, task })
    }

    /// Waits until this one leads in its eyes, and says how long it took.
    async fn sees(&mut self, leader: Leader, within: Duration) -> Result<Duration> {
        let since = Instant::now();
        let seen = timeout(within, self.leader.wait_for(|seen| *seen == leader)).await.is_ok();
        ensure!(seen, "{} sees {:?} instead of {leader:?}", self.address, *self.leader.borrow());
        Ok(since.elapsed())
    }
}

#[test]
fn one_replica_leads_and_the_next_takes_over() -> Result<()> {
    const SOON: Duration = Duration::from_secs(10);
    let cluster = Cluster::start(Parts::Api)?;
    let client = cluster.client();
    let (mut one, mut two) = cluster.run(async {
        let mut one = Replica::start(&client, "a", "10.0.0.1:1")?;
        one.sees(Leader::Me, SOON).await?;
        let mut two = Replica::start(&client, "b", "10.0.0.2:1")?;
        two.sees(Leader::Other(one.address), SOON).await?;

        // It lets go when it ends.
        let Replica { stop, task, mut leader, .. } = one;
        stop.send(()).ok().context("it runs")?;
        task.await?;
        assert_eq!(*leader.borrow_and_update(), Leader::Unknown);
        two.sees(Leader::Me, Duration::from_secs(5)).await?;
        let mut one = Replica::start(&client, "a", "10.0.0.1:1")?;
        one.sees(Leader::Other(two.address), SOON).await?;
        anyhow::Ok((one, two))
    })?;

    // Without an API server nobody leads, and afterwards one does.
    cluster.kill_apiserver();
    let took = cluster.run(two.sees(Leader::Unknown, Duration::from_secs(13)))?;
    assert!(took > Duration::from_secs(4), "it leads for as long as nobody else can: {took:?}");
    cluster.start_apiserver()?;
    cluster.run(async {
        let leads = |replica: &Replica| *replica.leader.borrow() == Leader::Me;
        let since = Instant::now();
        while !leads(&one) && !leads(&two) {
            ensure!(since.elapsed() < Duration::from_secs(30), "nobody leads");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!(leads(&one) && leads(&two)));
        let (leading, other) = if leads(&one) { (one, &mut two) } else { (two, &mut one) };
        other.sees(Leader::Other(leading.address), SOON).await?;

        // Killed, it lets go of nothing.
        leading.task.abort();
        let took = other.sees(Leader::Me, Duration::from_secs(20)).await?;
        assert!(took > Duration::from_secs(8), "its lease holds for a while: {took:?}");
        anyhow::Ok(())
    })?;
    cluster.end()
}
