use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{Server, app, completion_body, error_of, json_body, post, says, text_body};
use crate::dashboard::assets::ASSETS;
use crate::dashboard::views::{
    Views,
    tests::{view, viewing},
};
use crate::engine::fake::{FakeEngine, Script};
use crate::http::{ApiKeys, router};

/// A server that keeps one request, `r`.
fn debugging() -> Router {
    let views = Views::default();
    views.add(viewing("r"), view());
    let mut app = app(FakeEngine::new(vec![says("x")]).handle);
    app.views = Some(Arc::new(views));
    router(app)
}

async fn get(router: &Router, path: &str) -> axum::http::Response<Body> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    router.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn the_page_and_its_parts_are_served_and_nothing_else() {
    let server = Server::new(says("x"));
    let page = server.get("/dashboard").await;
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("'self'"));
    assert!(text_body(page).await.starts_with("<!doctype html>"));
    for asset in ASSETS {
        let part = server.get(&format!("/dashboard/assets/{}", asset.name)).await;
        assert_eq!(part.headers()["content-type"], asset.content_type);
        assert_eq!(text_body(part).await, asset.body);
    }
    for path in ["/dashboard/assets/nope.js", "/dashboard/assets/..%2Fpage.html"] {
        assert_eq!(error_of(server.get(path).await).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn the_state_names_the_server_and_has_every_part() {
    let state = json_body(Server::new(says("x")).get("/dashboard/state").await).await;
    for part in ["gauges", "counters", "histograms", "sequences", "server"] {
        assert!(!state[part].is_null(), "{part}");
    }
    assert_eq!(state["server"]["debug_kv"], false);
}

#[tokio::test]
async fn what_requests_leave_is_not_shown_unless_the_server_was_started_for_it() {
    let server = Server::new(says("x"));
    for path in ["/debug/kv", "/debug/kv/r"] {
        let (status, error) = error_of(server.get(path).await).await;
        assert_eq!(status, 404);
        assert!(error["message"].as_str().unwrap().contains("--debug-kv"));
    }
}

#[tokio::test]
async fn a_kept_request_is_listed_and_shown_and_questions_that_make_no_sense_are_refused() {
    let router = debugging();
    let list = json_body(get(&router, "/debug/kv").await).await;
    assert_eq!(list["requests"][0]["id"], "r");
    let page = json_body(get(&router, "/debug/kv/r?layer=0").await).await;
    assert_eq!(page["tokens"][2]["tiers"]["evicted"], 1);
    assert_eq!((&page["layer"], &page["num_layers"]), (&Value::from(0), &Value::from(2)));
    for (path, status) in [
        ("/debug/kv/other", 404),
        ("/debug/kv/r?layer=2", 400),
        ("/debug/kv/r?layer=x", 400),
        ("/debug/kv/r?budget=0", 400),
        ("/debug/kv/r?budget=NaN", 400),
    ] {
        assert_eq!(error_of(get(&router, path).await).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn what_a_request_left_is_shown_to_the_key_that_sent_it_and_to_no_other() {
    let views = Arc::new(Views::default());
    let kept = views.clone();
    let server = Server::changed(says("x"), |app| {
        app.views = Some(kept);
        app.api_keys = ApiKeys::new(["first", "second"]);
    });
    let with_key = |mut request: Request<Body>, key: &str| {
        let bearer = format!("Bearer {key}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        server.send(request)
    };
    let asked = post("/v1/completions", completion_body(json!({})).to_string());
    let id = json_body(with_key(asked, "first").await).await["id"].as_str().unwrap().to_owned();
    for (key, num, status) in [("first", 1, 200), ("second", 0, 404)] {
        let get = |path: &str| with_key(Request::get(path).body(Body::empty()).unwrap(), key);
        let list = json_body(get("/debug/kv").await).await;
        assert_eq!(list["requests"].as_array().unwrap().len(), num, "{key}");
        assert_eq!(get(&format!("/debug/kv/{id}")).await.status(), status, "{key}");
    }
}

#[tokio::test]
async fn a_replay_that_nobody_waits_for_is_stopped() {
    let views = Views::default();
    views.add(viewing("r"), view());
    let server = Server::changed(Script::Hang(vec![]), |app| app.views = Some(Arc::new(views)));
    let shown = server.get("/debug/kv/r?budget=0.5");
    assert!(tokio::time::timeout(Duration::from_millis(50), shown).await.is_err());
    server.engine.cancelled.notified().await;
}
