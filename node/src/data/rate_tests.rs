//! Rates: never more than was set, nobody left waiting for more than what went before, and hours that fit.

use proptest::prelude::*;

use super::*;

/// Takers one after another: (pause before, bytes).
fn takes() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0u64..400, 1u64..200_000), 1..80)
}

proptest! {
    #[test]
    fn no_more_goes_than_the_rate_and_one_burst(rate in 1_000u64..50_000_000, takes in takes()) {
        let (mut bucket, mut now, mut gone) = (Bucket::default(), 0, 0u128);
        let burst = (rate * BURST_MS / 1000).max(BURST_BYTES_MIN);
        for (pause, bytes) in takes {
            now += pause;
            let wait = bucket.take(now, rate, bytes);
            gone += u128::from(bytes);
            let until = u128::from(now + wait);
            prop_assert!(gone * 1000 <= u128::from(rate) * until + u128::from(burst) * 1000, "{gone} bytes by {until} ms");
        }
    }

    #[test]
    fn nobody_waits_longer_than_what_was_taken_before_needs(rate in 1_000u64..50_000_000, takes in takes()) {
        let (mut bucket, mut now, mut taken) = (Bucket::default(), 0, 0u128);
        for (pause, bytes) in takes {
            now += pause;
            taken += u128::from(bytes);
            let wait = bucket.take(now, rate, bytes);
            prop_assert!(u128::from(wait) <= taken * 1000 / u128::from(rate) + 1, "{wait} ms");
        }
    }
}

#[test]
fn a_pause_earns_one_burst_and_no_more() {
    let mut bucket = Bucket::default();
    assert_eq!(bucket.take(0, 1_000_000, 250_000), 0, "the first burst");
    assert_eq!(bucket.take(0, 1_000_000, 100_000), 101);
    assert_eq!(bucket.take(3_600_000, 1_000_000, 250_000), 0);
    assert!(bucket.take(3_600_000, 1_000_000, 1_000_000) >= 1_000, "an hour's rest is not an hour's worth");
}

#[test]
fn hours_set_both_totals_and_leave_a_peers_own() {
    let rates = Rates {
        up: parse_rate("1MiB/s").unwrap(),
        up_per_peer: Some(7),
        hours: vec!["22:00-06:00=0".parse().unwrap(), "08:00-18:00=64KiB".parse().unwrap()],
        ..Rates::default()
    };
    let at = |way, hour: u16| rates.total(way, hour * 60);
    assert_eq!((at(Way::Up, 23), at(Way::Up, 12), at(Way::Up, 20)), (None, Some(64 << 10), Some(1 << 20)));
    assert_eq!((at(Way::Down, 12), at(Way::Down, 20)), (Some(64 << 10), None));
    assert_eq!((rates.of_one(Way::Up), rates.of_one(Way::Down)), (Some(7), None));
}

#[test]
fn a_node_is_near_on_this_host_and_in_a_private_network_of_ours() {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
    let ours = addresses(&["192.168.7.4:4178", "203.0.113.9:4178", "[fd00:1::4]:4178", "127.0.0.1:4178"]);
    let near = |theirs: &[&str]| is_near(&addresses(theirs), &ours);
    assert!(near(&["192.168.7.200:1", "127.0.0.1:1"]) && near(&["[fd00:1::9]:1"]), "the same network");
    assert!(near(&["203.0.113.9:9"]) && near(&["127.0.0.1:9"]), "the same host");
    assert!(!near(&["192.168.8.4:1", "127.0.0.1:1"]) && !near(&["203.0.113.10:1"]) && !near(&["[fd00:2::4]:1"]));
}

#[test]
fn what_is_no_rate_says_how_one_looks() {
    assert!("08:00-18:00".parse::<RateHours>().unwrap_err().contains("08:00-18:00=5MiB"));
    assert!("8-18=1MiB".parse::<RateHours>().is_err());
    assert!(parse_rate("fast").is_err());
}

#[tokio::test]
async fn a_pace_tells_while_it_has_bytes_wait() {
    let limits = Limits::new(Rates { down: Some(100_000), ..Rates::default() });
    let pace = limits.pace(Way::Down, Arc::default());
    pace.pass(65_536).await;
    assert!(!pace.is_held());
    let waiting = pace.clone();
    let mut waits = tokio::task::JoinSet::new();
    waits.spawn(async move { waiting.pass(20_000).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(pace.is_held(), "200 ms' worth waits");
    waits.join_all().await;
    assert!(!pace.is_held());
}
