use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::authentication::v1::UserInfo;
use tokio::time::advance;

use super::*;

const ACCOUNT: &str = "system:serviceaccount:mesh:agent";

fn good() -> TokenReviewStatus {
    let extra = [("node-name", "node-1"), ("pod-name", "agent-x"), ("pod-uid", "1-2")]
        .map(|(key, value)| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]));
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![AUDIENCE.to_owned()]),
        error: None,
        user: Some(UserInfo {
            username: Some(ACCOUNT.to_owned()),
            extra: Some(BTreeMap::from(extra)),
            ..UserInfo::default()
        }),
    }
}

fn reporter() -> Reporter {
    Reporter {
        node: ObjectName::new("node-1").unwrap(),
        pod: ObjectName::new("agent-x").unwrap(),
        pod_uid: PodUid::new("1-2").unwrap(),
    }
}

#[test]
fn an_agents_token_tells_its_node() {
    assert_eq!(judge(&good(), ACCOUNT), Ok(reporter()));
}

#[test]
fn other_tokens_are_refused_with_the_reason() {
    type Change = fn(&mut TokenReviewStatus);
    fn extra(status: &mut TokenReviewStatus) -> &mut BTreeMap<String, Vec<String>> {
        status.user.as_mut().unwrap().extra.as_mut().unwrap()
    }
    let changes: [(&str, Change); 10] = [
        ("does not accept the token: [invalid bearer token]", |status| {
            status.authenticated = Some(false);
            status.error = Some("[invalid bearer token]".to_owned());
        }),
        ("does not accept", |status| *status = TokenReviewStatus::default()),
        ("audience", |status| {
            status.authenticated = Some(false);
            status.error = Some(
                "[invalid bearer token, token audiences [\"a\"] is invalid for the target audiences]"
                    .to_owned(),
            );
        }),
        ("audience", |status| status.audiences = None),
        ("audience", |status| status.audiences = Some(vec!["other".to_owned()])),
        ("system:serviceaccount:mesh:other", |status| {
            status.user.as_mut().unwrap().username = Some("system:serviceaccount:mesh:other".to_owned());
        }),
        ("service account", |status| status.user = None),
        ("node", |status| drop(extra(status).remove("authentication.kubernetes.io/node-name"))),
        ("node", |status| {
            extra(status).insert(
                "authentication.kubernetes.io/node-name".to_owned(),
                vec!["a".to_owned(), "b".to_owned()],
            );
        }),
        ("pod", |status| {
            extra(status).insert("authentication.kubernetes.io/pod-uid".to_owned(), vec!["a/b".to_owned()]);
        }),
    ];
    for (word, change) in changes {
        let mut status = good();
        change(&mut status);
        let refused = judge(&status, ACCOUNT).unwrap_err().to_string();
        assert!(refused.contains(word), "{word}: {refused}");
    }
}

#[test]
fn what_the_api_server_says_reaches_no_terminal_as_it_is() {
    let status = TokenReviewStatus {
        error: Some(format!("\u{1b}[2J{}", "a".repeat(10_000))),
        ..TokenReviewStatus::default()
    };
    let refused = judge(&status, ACCOUNT).unwrap_err().to_string();
    assert!(!refused.contains('\u{1b}') && refused.len() < 400, "{refused:?}");
}

/// Answers with one status, or not at all, and counts.
#[derive(Default)]
struct Fixed {
    status: Mutex<Option<TokenReviewStatus>>,
    asked: AtomicUsize,
}

impl Review for Arc<Fixed> {
    async fn review(&self, _: &str) -> Result<TokenReviewStatus, String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.status.lock().unwrap().clone().ok_or_else(|| "away".to_owned())
    }
}

fn tokens(status: Option<TokenReviewStatus>) -> (Tokens<Arc<Fixed>>, Arc<Fixed>) {
    let fixed = Arc::new(Fixed { status: Mutex::new(status), asked: AtomicUsize::new(0) });
    (Tokens::new(Arc::clone(&fixed), "mesh", "agent"), fixed)
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_remembered_for_a_while() {
    let (tokens, fixed) = tokens(Some(good()));
    for _ in 0..3 {
        assert_eq!(*tokens.authenticate("a").await.unwrap(), reporter());
    }
    assert_eq!(fixed.asked.load(Ordering::SeqCst), 1);
    tokens.authenticate("b").await.unwrap();
    assert_eq!(fixed.asked.load(Ordering::SeqCst), 2);
    *fixed.status.lock().unwrap() = Some(TokenReviewStatus::default());
    advance(REMEMBERED).await;
    assert!(matches!(tokens.authenticate("a").await, Err(Refused::Invalid(_))));
    assert!(matches!(tokens.authenticate("a").await, Err(Refused::Invalid(_))));
    assert_eq!(fixed.asked.load(Ordering::SeqCst), 3, "a refusal is remembered too");
}

#[tokio::test(start_paused = true)]
async fn that_nobody_could_tell_is_not_remembered() {
    let (tokens, fixed) = tokens(None);
    assert_eq!(tokens.authenticate("a").await, Err(Refused::Unchecked("away".to_owned())));
    *fixed.status.lock().unwrap() = Some(good());
    assert!(tokens.authenticate("a").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn any_number_of_tokens_takes_bounded_memory() {
    let (tokens, fixed) = tokens(Some(TokenReviewStatus::default()));
    for token in 0..MOST + 100 {
        drop(tokens.authenticate(&token.to_string()).await);
    }
    assert_eq!(tokens.lock().len(), MOST);
    advance(REFUSED).await;
    drop(tokens.authenticate("new").await);
    assert_eq!(tokens.lock().len(), 1);
    let asked = fixed.asked.load(Ordering::SeqCst);
    assert!(tokens.authenticate(&"a".repeat(LONGEST + 1)).await.is_err());
    assert!(tokens.authenticate("").await.is_err());
    assert_eq!(fixed.asked.load(Ordering::SeqCst), asked, "nobody is asked about what is no token");
}
