use serde_json::json;

use super::{EOS, MAX_MODEL_LEN, Server, ids, says};

#[tokio::test]
async fn a_text_becomes_tokens_and_they_become_the_text() {
    let server = Server::new(says("x"));
    let tokens = server.ok("/tokenize", json!({"prompt": "aé"})).await;
    let expected = json!({
        "count": 3, "max_model_len": MAX_MODEL_LEN, "tokens": ids("aé"), "token_strs": null,
    });
    assert_eq!(tokens, expected);
    let text = server.ok("/detokenize", json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(text, json!({"prompt": "aé"}));
}

#[tokio::test]
async fn a_chat_becomes_the_tokens_of_its_prompt() {
    let server = Server::new(says("x"));
    let messages = json!([{"role": "user", "content": "hi"}]);
    let tokens = server.ok("/tokenize", json!({"messages": messages})).await["tokens"].clone();
    assert_eq!(tokens, json!(ids("user:hi|assistant:")));
    let body =
        json!({"messages": messages, "add_generation_prompt": false, "return_token_strs": true});
    let answer = server.ok("/tokenize", body).await;
    assert_eq!(answer["count"], "user:hi|".len());
    assert_eq!(answer["token_strs"][0], "u");
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let server = Server::new(says("x"));
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 5}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "add_special_tokens": 1}), "add_special_tokens"),
        ("/tokenize", json!({"messages": []}), "messages"),
        ("/tokenize", json!({"prompt": "x".repeat(MAX_MODEL_LEN + 1)}), "prompt"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
        ("/detokenize", json!({"tokens": [EOS + 1]}), "tokens[0]"),
    ] {
        let (status, error) = server.error(path, body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)));
    }
    let (status, _) = server.error("/tokenize", json!({"model": "no", "prompt": "a"})).await;
    assert_eq!(status, 404);
}
