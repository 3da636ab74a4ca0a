use ::core::net::{IpAddr, Ipv4Addr};
use std::collections::HashSet;

use super::*;
use proptest::prelude::*;

fn app(name: &str) -> AppId {
    name.parse().unwrap()
}

fn origin(number: u32) -> Option<Origin> {
    Some(Origin::of(IpAddr::V4(Ipv4Addr::from_bits(number))))
}

fn limits() -> Limits {
    Limits {
        connections_max: 4,
        files_max: usize::MAX,
        refusals_max: 1,
        of_address: Some(AddressLimits {
            connections_max: 2,
            connects: Rate { burst: 3, per_s: 1 },
        }),
    }
}

fn admission(of_app: AppLimits) -> Admission {
    let apps = [(app("a"), of_app), (app("b"), AppLimits::default())];
    Admission::new(limits(), apps, Timestamp(0))
}

fn why(result: Result<(), Refusal>) -> Option<(Whose, Limiter)> {
    result.err().map(|refusal| (refusal.of, refusal.limiter))
}

#[test]
fn everybody_has_a_limit_of_their_own() {
    let of_app = AppLimits {
        connections_max: Some(3),
        ..AppLimits::default()
    };
    let mut admission = admission(of_app);
    let mut enter = |name: &str, from| {
        let knocked = admission.knock(origin(from), Timestamp(0));
        why(knocked.and_then(|()| admission.enter(&app(name), origin(from), Timestamp(0))))
    };
    assert_eq!([enter("a", 1), enter("a", 1)], [None, None]);
    assert_eq!(enter("a", 1), Some((Whose::Address, Limiter::Connections)));
    assert_eq!(enter("a", 1), Some((Whose::Address, Limiter::ConnectIp)));
    assert_eq!(enter("a", 2), None);
    assert_eq!(enter("a", 2), Some((Whose::App, Limiter::Connections)));
    assert_eq!(enter("b", 2), None);
    assert_eq!(enter("b", 3), Some((Whose::Gateway, Limiter::Connections)));
    admission.leave(&app("b"), origin(2));
    assert_eq!(
        why(admission.enter(&app("b"), origin(3), Timestamp(0))),
        None
    );
}

#[test]
fn an_address_that_knocks_too_often_is_told_how_long_to_wait() {
    let mut admission = admission(AppLimits::default());
    let mut knock = |from, at| admission.knock(origin(from), Timestamp(at));
    for _ in 0..3 {
        assert_eq!(knock(1, 0), Ok(()));
    }
    let refusal = knock(1, 400).unwrap_err();
    assert_eq!(refusal.limiter, Limiter::ConnectIp);
    assert_eq!(refusal.wait, Duration::from_millis(600));
    assert_eq!(knock(2, 400), Ok(()), "another one");
    assert_eq!(knock(1, 1_000), Ok(()));
}

#[test]
fn where_addresses_are_not_told_apart_they_do_not_count() {
    let limits = Limits {
        of_address: None,
        ..limits()
    };
    let apps = [(app("a"), AppLimits::default())];
    let mut admission = Admission::new(limits, apps, Timestamp(0));
    for _ in 0..4 {
        assert_eq!(why(admission.knock(origin(1), Timestamp(0))), None);
        assert_eq!(
            why(admission.enter(&app("a"), origin(1), Timestamp(0))),
            None
        );
    }
}

#[test]
fn who_is_told_to_wait_is_told_how_long() {
    let rate = Some(Rate { burst: 2, per_s: 4 });
    let of_app = AppLimits {
        connections_max: None,
        connects: rate,
        requests: rate,
        publishes: rate,
    };
    let mut admission = admission(of_app);
    let a = app("a");
    let expected = |limiter, wait| {
        let wait = Duration::from_millis(wait);
        Err(Refusal {
            of: Whose::App,
            limiter,
            wait,
        })
    };
    for _ in 0..2 {
        assert_eq!(admission.request(&a, Timestamp(0)), Ok(()));
        assert_eq!(admission.enter(&a, None, Timestamp(0)), Ok(()));
    }
    assert_eq!(
        admission.request(&a, Timestamp(0)),
        expected(Limiter::Api, 250)
    );
    assert_eq!(
        admission.enter(&a, None, Timestamp(0)),
        expected(Limiter::ConnectApp, 250)
    );
    // A large one is let through, and counts as what it is.
    assert_eq!(admission.publish(&a, 10, Timestamp(0)), Ok(()));
    assert_eq!(
        admission.publish(&a, 1, Timestamp(0)),
        expected(Limiter::Publish, 2_250)
    );
    assert_eq!(admission.publish(&a, 1, Timestamp(2_250)), Ok(()));
    assert_eq!(
        admission.request(&app("b"), Timestamp(0)),
        Ok(()),
        "another app"
    );
}

#[test]
fn those_who_are_refused_together_do_not_come_back_together() {
    let mut admission = admission(AppLimits::default());
    for from in 0..4 {
        admission
            .enter(&app("a"), origin(from), Timestamp(0))
            .unwrap();
    }
    let waits: HashSet<Duration> = (10..20)
        .map(|from| {
            admission
                .enter(&app("a"), origin(from), Timestamp(0))
                .unwrap_err()
                .wait
        })
        .collect();
    assert_eq!(waits.len(), SPREAD_SECS as usize);
    assert!(
        waits
            .iter()
            .all(|wait| (1..=SPREAD_SECS).contains(&wait.as_secs()))
    );
}

/// Whoever needs more files than one leaves less room to others.
#[test]
fn files_end_before_connections_do() {
    let limits = Limits {
        files_max: 4,
        of_address: None,
        ..limits()
    };
    let mut admission = Admission::new(limits, [(app("a"), AppLimits::default())], Timestamp(0));
    let enter = |admission: &mut Admission| why(admission.enter(&app("a"), None, Timestamp(0)));
    assert_eq!(enter(&mut admission), None);
    let full = Some((Whose::Gateway, Limiter::Connections));
    assert_eq!(why(admission.open(2)), None);
    assert_eq!(why(admission.open(2)), full);
    assert_eq!(enter(&mut admission), None);
    assert!(!admission.has_room());
    assert_eq!(enter(&mut admission), full);
    admission.close(2);
    assert_eq!(enter(&mut admission), None);
}

#[test]
fn those_who_are_told_why_have_little_room() {
    let mut admission = admission(AppLimits::default());
    assert!(admission.keep_refused());
    assert!(!admission.keep_refused());
    admission.forget_refused();
    assert!(admission.keep_refused());
}

#[test]
fn of_very_many_addresses_those_without_a_connection_are_forgotten() {
    let limits = Limits {
        connections_max: 10,
        ..limits()
    };
    let mut admission = Admission::new(limits, [(app("a"), AppLimits::default())], Timestamp(0));
    admission.enter(&app("a"), origin(0), Timestamp(0)).unwrap();
    admission.enter(&app("a"), origin(0), Timestamp(0)).unwrap();
    for from in 1..3 * ADDRESSES_MAX as u32 {
        let _ = admission.knock(origin(from), Timestamp(0));
        assert!(admission.addresses.len() <= ADDRESSES_MAX);
    }
    let again = admission.enter(&app("a"), origin(0), Timestamp(0));
    assert_eq!(
        why(again),
        Some((Whose::Address, Limiter::Connections)),
        "not forgotten"
    );
}

/// However many are connected, only some of the newcomers have to look for room.
#[test]
fn very_many_connected_addresses_are_all_kept() {
    let connected = 2 * ADDRESSES_MAX as u32;
    let limits = Limits {
        connections_max: usize::MAX,
        ..limits()
    };
    let mut admission = Admission::new(limits, [(app("a"), AppLimits::default())], Timestamp(0));
    let mut looked_at = HashSet::new();
    for from in 0..=connected {
        admission
            .enter(&app("a"), origin(from), Timestamp(0))
            .unwrap();
        looked_at.insert(admission.forget_at);
    }
    assert_eq!(admission.addresses.len(), connected as usize + 1);
    let expected = [1, 2, 4].map(|times| times * ADDRESSES_MAX);
    assert_eq!(looked_at, HashSet::from(expected));
}

proptest! {
    /// Whoever comes and goes: no limit is passed, everybody is counted out, and
    /// nobody is refused whom there is room for.
    #[test]
    fn counts_are_those_of_who_is_in(
        steps in prop::collection::vec((any::<bool>(), 0_usize..2, 0_u32..3, any::<prop::sample::Index>()), 0..60),
    ) {
        let names = ["a", "b"].map(app);
        let of_app = AppLimits { connections_max: Some(2), ..AppLimits::default() };
        let mut admission = admission(of_app);
        let mut within: Vec<(usize, u32)> = Vec::new();
        // So slowly that no rate counts.
        let mut now = 0;
        for (enters, name, from, who) in steps {
            now += 3_000;
            if enters {
                let of_name = within.iter().filter(|(other, _)| *other == name).count();
                let of_from = within.iter().filter(|(_, other)| *other == from).count();
                let fits = within.len() < 4 && of_from < 2 && (name == 1 || of_name < 2);
                let entered = admission.enter(&names[name], origin(from), Timestamp(now)).is_ok();
                prop_assert_eq!(entered, fits);
                if entered {
                    within.push((name, from));
                }
            } else if !within.is_empty() {
                let (name, from) = within.swap_remove(who.index(within.len()));
                admission.leave(&names[name], origin(from));
            }
            prop_assert_eq!(admission.connections(), within.len());
        }
    }
}
