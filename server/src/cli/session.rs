//! A conversation: its history, and one answer at a time from the engine.

use std::future::Future;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;
use keepwell_kernels::PageLayout;
use serde_json::{Value, json};

use crate::cache::Salt;
use crate::engine::{
    EngineHandle, Event, GenerateRequest, Generation, KvCacheParams, KvUsage, SamplingParams,
};
use crate::http::{Chat, ServedModel, Text};
use crate::sched::UserId;

pub struct Session {
    pub engine: EngineHandle,
    pub text: Arc<dyn Text>,
    pub model: ServedModel,
    pub layout: PageLayout,
    pub sampling: SamplingParams,
    pub kv_cache: KvCacheParams,
    /// Share that memory pressure may push an answer down to, where its budget is higher; absent,
    /// it is the budget.
    pub floor: Option<f32>,
    pub max_tokens: Option<usize>,
    pub system: Option<String>,
    pub messages: Vec<Value>,
}

/// An answer's text and what it cost; no cost is known of one that was broken off.
struct Answer {
    text: String,
    num_tokens: usize,
    decoding: Duration,
    kv_cache: Option<KvUsage>,
}

impl Session {
    /// Forgets everything but the system message.
    pub fn clear(&mut self) {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        self.messages = system.collect();
    }

    pub fn set_budget(&mut self, budget: f32) {
        self.kv_cache.budget = budget;
        self.kv_cache.min_budget = self.floor.map_or(budget, |floor| floor.min(budget));
    }

    /// Says `text` to the model and streams its answer to `out`, with a line of statistics after
    /// it. `interrupt` ends the answer where it is.
    ///
    /// # Errors
    /// The conversation does not fit, or the engine fails; the history is as before then.
    pub async fn say(
        &mut self,
        text: &str,
        out: &mut impl Write,
        interrupt: impl Future,
    ) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        let answer = match self.answer(out, interrupt).await {
            Ok(answer) => answer,
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        };
        writeln!(out, "\n{}", self.statistics(&answer))?;
        self.messages.push(json!({"role": "assistant", "content": answer.text}));
        Ok(())
    }

    async fn answer(&self, out: &mut impl Write, interrupt: impl Future) -> Result<Answer> {
        let mut generation = self.engine.generate(self.request()?)?;
        let mut answer =
            Answer { text: String::new(), num_tokens: 0, decoding: Duration::ZERO, kv_cache: None };
        tokio::select! {
            result = self.stream(&mut generation, &mut answer, out) => result?,
            _ = interrupt => {}
        }
        Ok(answer)
    }

    fn request(&self) -> Result<GenerateRequest> {
        let messages = Value::Array(self.messages.clone());
        let prompt =
            self.text.render_chat(&Chat { messages, tools: None, add_generation_prompt: true })?;
        let prompt = self.text.encode(&prompt, false)?;
        let rest = self.model.max_model_len.saturating_sub(prompt.len());
        ensure!(rest > 0, "the conversation fills the model's context; /clear starts anew");
        Ok(GenerateRequest {
            prompt,
            max_tokens: self.max_tokens.unwrap_or(rest).min(rest),
            may_shorten: true,
            stop_token_ids: self.model.eos_token_ids.clone(),
            sampling: self.sampling.clone(),
            kv_cache: self.kv_cache,
            priority: 0,
            user: UserId::ANONYMOUS,
            constraint: None,
            marked: Default::default(),
            pooling: None,
            cache_salt: Some(Salt::default()),
        })
    }

    async fn stream(
        &self,
        generation: &mut Generation,
        answer: &mut Answer,
        out: &mut impl Write,
    ) -> Result<()> {
        let mut detokenizer = self.text.detokenizer(false);
        let mut first_token = None;
        loop {
            match generation.next().await.context("the engine ended without an answer")? {
                Event::PromptLogprobs(_) | Event::Embedding(_) => {}
                Event::Token(token) => {
                    answer.num_tokens += 1;
                    answer.decoding = first_token.get_or_insert_with(Instant::now).elapsed();
                    answer.give(&detokenizer.push(token.id), out)?;
                }
                Event::Finished(outcome) => {
                    answer.kv_cache = Some(outcome.kv_cache);
                    return answer.give(&detokenizer.flush(), out);
                }
                Event::Failed(error) => return Err(error.into()),
            }
        }
    }

    fn statistics(&self, answer: &Answer) -> String {
        // The first token came from the prompt; the time is that of the others.
        let rate = answer.num_tokens.saturating_sub(1) as f64 / answer.decoding.as_secs_f64();
        let rate = if rate.is_finite() { format!(", {rate:.1} tokens/s") } else { String::new() };
        let cache = answer.kv_cache.as_ref().map_or(String::new(), |kv| self.cache(kv));
        format!("[{} tokens{rate}{cache}]", answer.num_tokens)
    }

    /// `; cache 1.2 MiB of 4.0 MiB: f16 0.5 MiB, k8v4 0.7 MiB, 100 evicted`
    fn cache(&self, kv: &KvUsage) -> String {
        let size = |bytes: usize| ByteSize(bytes as u64).display().iec();
        let mut line = format!("; cache {} of {}:", size(kv.bytes), size(kv.f16_bytes));
        for (tier, tokens) in kv.tokens.iter().filter(|(_, tokens)| **tokens > 0) {
            let bytes = tokens * self.layout.token_bytes(tier);
            line += &format!(" {} {},", tier.name(), size(bytes));
        }
        line + &format!(" {} entries evicted", kv.evicted)
    }
}

impl Answer {
    fn give(&mut self, text: &str, out: &mut impl Write) -> Result<()> {
        self.text += text;
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::PolicyId;
    use crate::engine::EngineError;
    use crate::engine::fake::{FakeEngine, Script};
    use crate::http::fake::{ByteText, EOS, ids, says};

    fn session(engine: &FakeEngine) -> Session {
        Session {
            engine: engine.handle.clone(),
            text: Arc::new(ByteText),
            model: ServedModel::new("bytes".into(), 100, vec![EOS], 3),
            layout: PageLayout::new(64),
            sampling: SamplingParams::default(),
            kv_cache: KvCacheParams { budget: 1.0, min_budget: 0.5, policy: PolicyId::default() },
            floor: Some(0.5),
            max_tokens: None,
            system: None,
            messages: vec![],
        }
    }

    /// What the session wrote on being told `text`.
    async fn say(session: &mut Session, text: &str) -> Result<String> {
        let mut out = vec![];
        session.say(text, &mut out, std::future::pending::<()>()).await?;
        Ok(String::from_utf8(out)?)
    }

    #[tokio::test]
    async fn an_answer_is_followed_by_its_cost() {
        let engine = FakeEngine::new(vec![says("héllo")]);
        let out = say(&mut session(&engine), "hi").await.unwrap();
        let (answer, statistics) = out.split_once('\n').unwrap();
        assert_eq!(answer, "héllo");
        assert!(statistics.starts_with("[6 tokens, "), "{statistics}");
        for part in ["1000 B of 3.9 KiB", "f16 1.0 KiB", "k4v4", "5 entries evicted"] {
            assert!(statistics.contains(part), "{part}: {statistics}");
        }
    }

    #[tokio::test]
    async fn the_model_sees_the_conversation_until_it_is_cleared() {
        let engine = FakeEngine::new(vec![says("A"), says("B")]);
        let mut session = session(&engine);
        session.system = Some("be kind".into());
        session.clear();
        say(&mut session, "a").await.unwrap();
        say(&mut session, "b").await.unwrap();
        session.clear();
        say(&mut session, "c").await.unwrap();
        let prompts: Vec<_> =
            engine.requests.lock().unwrap().iter().map(|r| r.prompt.clone()).collect();
        let expected = [
            "system:be kind|user:a|assistant:",
            "system:be kind|user:a|assistant:A|user:b|assistant:",
            "system:be kind|user:c|assistant:",
        ];
        assert_eq!(prompts, expected.map(ids));
    }

    #[tokio::test]
    async fn a_lower_budget_takes_the_floor_with_it_until_it_is_raised_again() {
        let engine = FakeEngine::new(vec![]);
        let mut session = session(&engine);
        for (floor, budget, min_budget) in
            [(Some(0.5), 0.25, 0.25), (Some(0.5), 1.0, 0.5), (None, 0.25, 0.25), (None, 1.0, 1.0)]
        {
            session.floor = floor;
            session.set_budget(budget);
            let kv = session.kv_cache;
            assert_eq!((kv.budget, kv.min_budget), (budget, min_budget), "{floor:?}");
        }
    }

    #[tokio::test]
    async fn a_failed_answer_leaves_the_history_as_it_was() {
        let error = EngineError::Internal("bug".into());
        let engine = FakeEngine::new(vec![Script::Fail(vec![], error), says("A")]);
        let mut session = session(&engine);
        assert!(say(&mut session, "a").await.unwrap_err().to_string().contains("bug"));
        assert!(session.messages.is_empty());
        let too_long = "x".repeat(200);
        assert!(say(&mut session, &too_long).await.unwrap_err().to_string().contains("/clear"));
        assert!(session.messages.is_empty());
    }

    #[tokio::test]
    async fn an_interrupted_answer_is_kept_as_far_as_it_came() {
        let engine = FakeEngine::new(vec![Script::Hang(ids("half"))]);
        let mut session = session(&engine);
        let mut out = vec![];
        let interrupt = async {
            engine.asked().await;
            // Its tokens are on their way then.
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        session.say("a", &mut out, interrupt).await.unwrap();
        assert_eq!(session.messages[1]["content"], "half");
        engine.cancelled.notified().await;
    }
}
