//! No topic from outside panics, becomes more than it says, or is answered on when it is a command.
#![no_main]

use dtorrent::sinks::mqtt::topics::Topics;
use dtorrent::sinks::mqtt::{BrokerUrl, Prefix};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (prefix, topic) = input;
    if let Ok(url) = BrokerUrl::parse(topic) {
        assert_eq!(BrokerUrl::parse(&url.to_string()), Ok(url));
    }
    let Ok(prefix) = Prefix::parse(prefix) else { return };
    let below = format!("{prefix}/{topic}");
    let topics = Topics::new(prefix, "main", true);
    for topic in [topic, &below] {
        let is_answerable = topics.check_reply(topic).is_ok();
        if let Some(address) = topics.command(topic) {
            assert!(!is_answerable);
            for word in [address.server, address.hash, Some(address.verb)].into_iter().flatten() {
                assert!(!word.is_empty() && !word.contains('/'));
            }
        }
    }
});
