use std::time::Duration;

use futures_util::FutureExt;
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use super::{
    MAX_MODEL_LEN, MODEL, Server, app, chat_body, completion_body, error_of, ids, json_body, says,
    text_body,
};
use crate::engine::fake::{FakeEngine, Script};
use crate::http::router;
use crate::metrics::{describe, recorder};

const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_dropped_stream_cancels_its_generation() {
    let server = Server::new(Script::Hang(ids("abc")));
    let body = chat_body(json!({"stream": true}));
    let mut body = server.post("/v1/chat/completions", body).await.into_body();
    body.frame().await.unwrap().unwrap();
    assert!(server.engine.cancelled.notified().now_or_never().is_none());
    drop(body);
    tokio::time::timeout(PATIENCE, server.engine.cancelled.notified()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_before_a_whole_answer_cancels_too() {
    let server = Server::new(Script::Hang(ids("abc")));
    let request = server.post("/v1/completions", completion_body(json!({})));
    tokio::select! {
        _ = request => panic!("nothing ends this generation"),
        () = server.engine.asked() => {}
    }
    tokio::time::timeout(PATIENCE, server.engine.cancelled.notified()).await.unwrap();
}

#[tokio::test]
async fn one_failed_choice_cancels_the_others() {
    let error = crate::engine::EngineError::Internal("bug".into());
    let scripts = vec![Script::Hang(vec![]), Script::Fail(vec![], error)];
    let server = Server::with_scripts(scripts);
    let (status, _) = server.error("/v1/completions", completion_body(json!({"n": 2}))).await;
    assert_eq!(status, 500);
    tokio::time::timeout(PATIENCE, server.engine.cancelled.notified()).await.unwrap();
}

#[tokio::test]
async fn health_is_200_while_the_engine_lives_and_503_after() {
    assert_eq!(Server::new(says("x")).get("/health").await.status(), 200);
    let router = router(app(FakeEngine::dead()));
    let request = axum::http::Request::get("/health").body(axum::body::Body::empty()).unwrap();
    let (status, error) = error_of(router.oneshot(request).await.unwrap()).await;
    assert_eq!((status, &error["type"]), (503, &json!("service_unavailable_error")));
}

#[tokio::test]
async fn a_request_to_a_dead_engine_is_503() {
    let router = router(app(FakeEngine::dead()));
    let request = super::post("/v1/completions", completion_body(json!({})).to_string());
    assert_eq!(error_of(router.oneshot(request).await.unwrap()).await.0, 503);
}

#[tokio::test]
async fn the_model_is_listed_and_found_by_its_name() {
    let server = Server::new(says("x"));
    let list = json_body(server.get("/v1/models").await).await;
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!(MODEL), &json!("model")));
    assert_eq!(model["max_model_len"], MAX_MODEL_LEN);
    assert_eq!(json_body(server.get(&format!("/v1/models/{MODEL}")).await).await, *model);
    let escaped = MODEL.replace('/', "%2F");
    assert_eq!(json_body(server.get(&format!("/v1/models/{escaped}")).await).await, *model);
}

#[tokio::test]
async fn the_version_is_that_of_the_crate() {
    let body = json_body(Server::new(says("x")).get("/version").await).await;
    assert_eq!(body, json!({"version": env!("CARGO_PKG_VERSION")}));
}

#[tokio::test]
async fn latencies_are_recorded_under_the_names_of_vllm() {
    let recorder = recorder(MODEL).unwrap().build_recorder();
    let handle = recorder.handle();
    let _local = metrics::set_default_local_recorder(&recorder);
    describe();
    let engine = FakeEngine::new(vec![says("abc")]);
    let mut app = app(engine.handle.clone());
    app.metrics = handle;
    let server = Server { router: router(app), engine };
    server.complete(json!({})).await;
    let response = server.get("/metrics").await;
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    let text = text_body(response).await;
    let model = format!("{{model_name=\"{MODEL}\",engine=\"0\"");
    for line in [
        format!("vllm:time_to_first_token_seconds_count{model}}} 1"),
        format!("vllm:inter_token_latency_seconds_count{model}}} 2"),
        format!("vllm:e2e_request_latency_seconds_count{model}}} 1"),
        format!("vllm:inter_token_latency_seconds_bucket{model},le=\"0.0005\"}} 2"),
        "# TYPE vllm:time_to_first_token_seconds histogram".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}
