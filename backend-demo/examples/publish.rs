//! Sends one message to a room of the fleet: the example of the guide, docs/publish.md.
#![allow(clippy::print_stdout, reason = "a program that says what it did")]

fn main() -> redis::RedisResult<()> {
    let url = std::env::var("REDIS_URL").unwrap_or("redis://127.0.0.1:6379".to_owned());
    let mut connection = redis::Client::open(url)?.get_connection()?;
    let message = r#"{"text": "hello from Rust"}"#;
    let proxies: i64 =
        redis::cmd("PUBLISH").arg("steadfast:to:room:lobby").arg(message).query(&mut connection)?;
    println!("{}", if proxies > 0 { "sent" } else { "nobody is there" });
    Ok(())
}
