//! A response as named events, each with its number.

use std::pin::Pin;
use std::sync::Arc;

use axum::response::sse::Event;
use futures_util::stream::{self, Peekable, Stream, StreamExt};
use serde_json::{Value, json};

use super::super::App;
use super::super::answer::Updates;
use super::super::choice::{Delta, Update};
use super::super::error::ApiError;
use super::super::usage::Usage;
use super::keep;
use super::object::{Item, Making, Status, text_part};

/// The whole stream.
pub fn events(
    app: Arc<App>,
    updates: Pin<Box<Peekable<Updates>>>,
    making: Making,
    usage: Usage,
) -> impl Stream<Item = Event> + Send {
    let mut body = Body {
        app,
        updates,
        making,
        usage,
        num_events: 0,
        num_told: 0,
        num_closed: 0,
        ended: false,
    };
    let opening = body.opening();
    let next = |mut body: Body| async { Some((stream::iter(body.next().await?), body)) };
    stream::iter(opening).chain(stream::unfold(body, next).flatten())
}

struct Body {
    app: Arc<App>,
    updates: Pin<Box<Peekable<Updates>>>,
    making: Making,
    usage: Usage,
    num_events: usize,
    /// Items whose start was told.
    num_told: usize,
    /// Items whose end was told.
    num_closed: usize,
    ended: bool,
}

impl Body {
    fn opening(&mut self) -> Vec<Event> {
        let response = self.making.object(None);
        ["response.created", "response.in_progress"]
            .map(|name| self.event(name, json!({"response": response})))
            .into()
    }

    async fn next(&mut self) -> Option<Vec<Event>> {
        if self.ended {
            return None;
        }
        Some(match self.updates.next().await {
            Some(Update::Prompt(_)) => vec![],
            Some(Update::Delta(delta)) => self.delta(&delta),
            Some(Update::Finished(finished)) => {
                self.usage.add(&finished);
                self.making.finish(finished.reason);
                vec![]
            }
            Some(Update::Failed(error)) => self.failed(&error),
            None => self.completed(),
        })
    }

    /// One event for each new item, and one for what it has more of.
    fn delta(&mut self, delta: &Delta) -> Vec<Event> {
        let mut events = vec![];
        if !delta.text.is_empty() {
            let text = Delta { text: delta.text.clone(), ..Delta::default() };
            self.making.take(&text);
            self.open_last(&mut events);
            let more = json!({"content_index": 0, "delta": delta.text, "logprobs": []});
            events.push(self.item_event("response.output_text.delta", more));
        }
        for piece in &delta.calls {
            self.making.take(&Delta { calls: vec![piece.clone()], ..Delta::default() });
            self.open_last(&mut events);
            if !piece.arguments.is_empty() {
                let more = json!({"delta": piece.arguments});
                events.push(self.item_event("response.function_call_arguments.delta", more));
            }
        }
        events
    }

    /// Tells of the last item if it is new, and of the end of the one before.
    fn open_last(&mut self, events: &mut Vec<Event>) {
        let num_items = self.making.items().len();
        if self.num_told == num_items {
            return;
        }
        if self.num_told > self.num_closed {
            self.close(events);
        }
        self.num_told = num_items;
        let index = num_items - 1;
        let item = empty(&self.making.items()[index]);
        let is_message = matches!(item, Item::Message { .. });
        let mut item = item.object(Status::InProgress);
        if is_message {
            item["content"] = json!([]);
        }
        let added = json!({"output_index": index, "item": item});
        events.push(self.event("response.output_item.added", added));
        if is_message {
            let part = json!({"content_index": 0, "part": text_part("")});
            events.push(self.item_event("response.content_part.added", part));
        }
    }

    /// Tells of the end of the oldest open item.
    fn close(&mut self, events: &mut Vec<Event>) {
        let index = self.num_closed;
        let item = self.making.items()[index].clone();
        let at = |mut data: Value| {
            data["output_index"] = index.into();
            data["item_id"] = item.id().into();
            data
        };
        match &item {
            Item::Message { text, .. } => {
                let done = at(json!({"content_index": 0, "text": text, "logprobs": []}));
                events.push(self.event("response.output_text.done", done));
                let part = at(json!({"content_index": 0, "part": text_part(text)}));
                events.push(self.event("response.content_part.done", part));
            }
            Item::Call { name, arguments, .. } => {
                let done = at(json!({"name": name, "arguments": arguments}));
                events.push(self.event("response.function_call_arguments.done", done));
            }
        }
        let status = match self.making.status() {
            Status::InProgress => Status::Completed,
            status => status,
        };
        let done = json!({"output_index": index, "item": item.object(status)});
        events.push(self.event("response.output_item.done", done));
        self.num_closed += 1;
    }

    fn completed(&mut self) -> Vec<Event> {
        self.ended = true;
        let mut events = vec![];
        // An answer without a word has its message still to tell of.
        self.open_last(&mut events);
        self.close(&mut events);
        let response = self.making.object(Some(&self.usage));
        keep(&self.app, &self.making, &response);
        let name = match self.making.status() {
            Status::Completed => "response.completed",
            _ => "response.incomplete",
        };
        events.push(self.event(name, json!({"response": response})));
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        self.ended = true;
        self.making.fail();
        let mut response = self.making.object(None);
        response["error"] = json!({"code": error.code, "message": error.message});
        vec![self.event("response.failed", json!({"response": response}))]
    }

    /// About the newest item.
    fn item_event(&mut self, name: &'static str, mut data: Value) -> Event {
        let items = self.making.items();
        data["output_index"] = (items.len() - 1).into();
        data["item_id"] = items.last().map_or("", Item::id).into();
        self.event(name, data)
    }

    fn event(&mut self, name: &'static str, mut data: Value) -> Event {
        data["type"] = name.into();
        data["sequence_number"] = self.num_events.into();
        self.num_events += 1;
        Event::default().event(name).data(data.to_string())
    }
}

/// The item as it was before its first piece.
fn empty(item: &Item) -> Item {
    let mut item = item.clone();
    match &mut item {
        Item::Message { text, .. } => text.clear(),
        Item::Call { arguments, .. } => arguments.clear(),
    }
    item
}
