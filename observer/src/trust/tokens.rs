//! Whose a token is, as the API server says (TokenReview). The answer is remembered for a short time, by the token's hash: the token
//! itself is not kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use ring::digest::{SHA256, digest};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::model::names::{ObjectName, PodUid};

/// The audience of agents' tokens.
pub const AUDIENCE: &str = "sidescope";
/// How long an answer counts. A token that was withdrawn is good for as long, for a new stream.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long a refusal counts, so that a token which is refused does not cost a review for each try.
const REFUSED: Duration = Duration::from_secs(10);
/// Most answers that are remembered.
const MOST: usize = 16_384;
/// Longest token; those of the API server have about one thousand bytes.
const LONGEST: usize = 8 << 10;
/// Most reviews at a time.
const AT_A_TIME: usize = 32;

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reporter {
    /// The node that its token is bound to. It may tell of pods of that node only.
    pub node: ObjectName,
    /// Its pod.
    pub pod: ObjectName,
    /// That pod's uid.
    pub pod_uid: PodUid,
}

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is none, or no longer.
    #[error("the API server does not accept the token: {0}")]
    Invalid(String),
    /// It is for somebody else.
    #[error("the token is not for the audience `{AUDIENCE}`; see `audience` of the agent's projected token")]
    Audience,
    /// It is somebody else's.
    #[error("the token is that of {0:?}, not of the agent's service account")]
    Account(String),
    /// It does not say where it is from.
    #[error("the token names no {0}; it must be a projected token of a pod, from Kubernetes 1.30 on")]
    WithoutNode(&'static str),
    /// Nobody can tell.
    #[error("the token could not be checked by the API server: {0}")]
    Unchecked(String),
}

/// Asks the API server; a test seam.
pub trait Review: Send + Sync + 'static {
    /// What it says of a token for [`AUDIENCE`], or why it cannot be asked.
    fn review(&self, token: &str) -> impl Future<Output = Result<TokenReviewStatus, String>> + Send;
}

/// The API server itself.
impl Review for Client {
    async fn review(&self, token: &str) -> Result<TokenReviewStatus, String> {
        let spec =
            TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.clone());
        let answer = reviews.create(&PostParams::default(), &review).await.map_err(|err| err.to_string())?;
        answer.status.ok_or_else(|| "its answer has no status".to_owned())
    }
}

type Hash = [u8; 32];

/// Knows agents by their tokens.
#[derive(Debug)]
pub struct Tokens<R> {
    review: R,
    /// The user name of the agents' service account.
    account: String,
    known: Mutex<HashMap<Hash, Known>>,
    reviews: Semaphore,
}

#[derive(Clone, Debug)]
struct Known {
    until: Instant,
    answer: Result<Arc<Reporter>, Refused>,
}

impl<R: Review> Tokens<R> {
    /// Accepts tokens of this service account only.
    pub fn new(review: R, namespace: &str, service_account: &str) -> Self {
        Self {
            review,
            account: format!("system:serviceaccount:{namespace}:{service_account}"),
            known: Mutex::default(),
            reviews: Semaphore::new(AT_A_TIME),
        }
    }

    /// Whose the token is.
    ///
    /// # Errors
    /// When it is no agent's, or nobody can tell.
    pub async fn authenticate(&self, token: &str) -> Result<Arc<Reporter>, Refused> {
        if token.is_empty() || token.len() > LONGEST {
            return Err(Refused::Invalid(format!("it is {} bytes long", token.len())));
        }
        let hash = hash(token);
        if let Some(answer) = self.remembered(&hash) {
            return answer;
        }
        let _turn = self.reviews.acquire().await.map_err(|err| Refused::Unchecked(err.to_string()))?;
        // Somebody else may have asked meanwhile.
        if let Some(answer) = self.remembered(&hash) {
            return answer;
        }
        let status = self.review.review(token).await.map_err(Refused::Unchecked)?;
        let answer = judge(&status, &self.account).map(Arc::new);
        let remembered = if answer.is_ok() { REMEMBERED } else { REFUSED };
        self.remember(hash, Known { until: Instant::now() + remembered, answer: answer.clone() });
        answer
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Hash, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, hash: &Hash) -> Option<Result<Arc<Reporter>, Refused>> {
        self.lock().get(hash).filter(|known| Instant::now() < known.until).map(|known| known.answer.clone())
    }

    fn remember(&self, hash: Hash, answer: Known) {
        let mut known = self.lock();
        if known.len() >= MOST {
            let now = Instant::now();
            known.retain(|_, known| now < known.until);
        }
        // Full of answers that still count: somebody tries many tokens. They cost a review each, some at a time.
        if known.len() < MOST {
            known.insert(hash, answer);
        }
    }
}

fn hash(token: &str) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

/// What an answer of the API server means, where the agents' service account has this user name.
fn judge(status: &TokenReviewStatus, account: &str) -> Result<Reporter, Refused> {
    if status.authenticated != Some(true) {
        let why = status.error.as_deref().unwrap_or("no reason given");
        // One that is for another audience is not authenticated either, and only the text tells which it was.
        return Err(if why.contains("audience") {
            Refused::Audience
        } else {
            Refused::Invalid(why.chars().filter(|c| !c.is_control()).take(200).collect())
        });
    }
    // An API server that does not know audiences lists none.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(Refused::Audience);
    }
    let user = status.user.as_ref();
    let name = user.and_then(|user| user.username.as_deref()).unwrap_or_default();
    if name != account {
        return Err(Refused::Account(name.chars().take(200).collect()));
    }
    let extra = |key: &str| {
        let values = user.and_then(|user| user.extra.as_ref()).and_then(|extra| extra.get(key));
        // One value, and no other: otherwise it is not certain which counts.
        values
            .and_then(|values| <&[String; 1]>::try_from(values.as_slice()).ok())
            .map(|[value]| value.clone())
    };
    let node = extra("authentication.kubernetes.io/node-name").and_then(|name| ObjectName::new(name).ok());
    let pod = extra("authentication.kubernetes.io/pod-name").and_then(|name| ObjectName::new(name).ok());
    let pod_uid = extra("authentication.kubernetes.io/pod-uid").and_then(|uid| PodUid::new(uid).ok());
    Ok(Reporter {
        node: node.ok_or(Refused::WithoutNode("node"))?,
        pod: pod.ok_or(Refused::WithoutNode("pod"))?,
        pod_uid: pod_uid.ok_or(Refused::WithoutNode("pod"))?,
    })
}

#[cfg(test)]
mod tests;
