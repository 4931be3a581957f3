//! The applications of Bookinfo.

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::ValueEnum;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::http::{Client, Name, Names, Page, Reuse, runtime, serve};
use super::{HTTP_PORT, MONGO_PORT, mongo, url};

/// Which application a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// The page itself: asks details and reviews.
    Productpage,
    /// Facts about a book.
    Details,
    /// Reviews without stars: asks nobody.
    ReviewsV1,
    /// Reviews with black stars: asks ratings.
    ReviewsV2,
    /// Reviews with red stars: asks ratings.
    ReviewsV3,
    /// Stars: asks MongoDB.
    Ratings,
    /// A database of two stars, over MongoDB's protocol.
    Mongodb,
}

/// Runs an application until the process ends.
pub fn run(role: Role, names: Vec<Name>) -> Result<()> {
    let names = Names::new(names);
    runtime()?.block_on(async {
        if role == Role::Mongodb {
            return mongo::serve(MONGO_PORT).await;
        }
        let reuse = if role == Role::Productpage { Reuse::Never } else { Reuse::KeepAlive };
        let client = Client::new(&names, reuse);
        serve(HTTP_PORT, move |path| {
            let (client, names) = (client.clone(), names.clone());
            async move { page(answer(role, &path, &client, &names).await) }
        })
        .await
    })
}

/// What a role says to a path; nothing if it does not know it.
async fn answer(role: Role, path: &str, client: &Client, names: &Names) -> Result<Option<Value>> {
    // Bookinfo knows one book, number 0.
    Ok(Some(match (role, path) {
        (_, "/health") => json!({ "status": "healthy" }),
        (Role::Productpage, "/productpage") => {
            let details = get(client, "details", "/details/0").await?;
            let reviews = get(client, "reviews", "/reviews/0").await?;
            json!({ "title": "The Comedy of Errors", "details": details, "reviews": reviews })
        }
        (Role::Details, "/details/0") => {
            json!({ "id": 0, "author": "William Shakespeare", "year": 1595, "pages": 200, "language": "English" })
        }
        (Role::ReviewsV1, "/reviews/0") => reviews("v1", None),
        (Role::ReviewsV2, "/reviews/0") => reviews("v2", Some(get(client, "ratings", "/ratings/0").await?)),
        (Role::ReviewsV3, "/reviews/0") => reviews("v3", Some(get(client, "ratings", "/ratings/0").await?)),
        (Role::Ratings, "/ratings/0") => {
            let stars = mongo::ratings(&names.addresses("mongodb", MONGO_PORT)?).await?;
            json!({ "id": 0, "ratings": stars })
        }
        _ => return Ok(None),
    }))
}

fn reviews(version: &str, ratings: Option<Value>) -> Value {
    json!({ "id": 0, "podname": format!("reviews-{version}"), "ratings": ratings })
}

async fn get(client: &Client, app: &str, path: &str) -> Result<Value> {
    let body = client.get(&url(app, path)).await?;
    serde_json::from_slice(&body).with_context(|| format!("the answer of {app} is no JSON"))
}

/// An error of a tier behind becomes ours, so that 200 means that all of them answered.
fn page(answer: Result<Option<Value>>) -> Page {
    let (status, kind, body) = match answer {
        Ok(Some(value)) => (StatusCode::OK, "application/json", format!("{value}\n")),
        Ok(None) => (StatusCode::NOT_FOUND, "text/plain", "no such page\n".to_owned()),
        Err(error) => (StatusCode::BAD_GATEWAY, "text/plain", format!("{error:#}\n")),
    };
    Page { status, kind, body: Bytes::from(body) }
}
