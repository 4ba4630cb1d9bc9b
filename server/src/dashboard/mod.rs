//! What the page at `/dashboard` shows: its files, and the JSON it asks for.
//!
//! | path | what |
//! |---|---|
//! | `GET /dashboard` | the page; its parts are under `/dashboard/assets` |
//! | `GET /dashboard/state` | [`state::state`]: memory, queue, counters, latencies, sequences |
//! | `GET /debug/kv` | with `--debug-kv`: the requests whose cache can be looked at |
//! | `GET /debug/kv/{id}` | with `--debug-kv`: [`attribution::Page`], token by token |

pub mod assets;
pub mod attribution;
pub mod state;
pub mod views;
