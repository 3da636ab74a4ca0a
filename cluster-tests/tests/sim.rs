//! The simulation: promises hold whatever goes wrong, and every planted mistake
//! is found. `SEEDS=n` runs more seeds, `make sim SEEDS=n` runs them fast.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: how many seeds is told by the environment"
)]

use cluster_tests::sim::Options;
use cluster_tests::sim::mistakes::Mistake;
use cluster_tests::sim::sweep::sweep;
use cluster_tests::sim::world::World;

/// Seeds of a run, unless `SEEDS` says otherwise.
const SEEDS: u64 = 500;
/// Within so many seeds each planted mistake is found.
const MISTAKE_SEEDS: u64 = 200;
/// Within so many, one that needs a lease to be asked for in the moment in which a
/// shard is given away.
const RARE_MISTAKE_SEEDS: u64 = 2_000;

#[test]
fn no_seed_breaks_a_promise() {
    let seeds = std::env::var("SEEDS").ok();
    let seeds = seeds.map_or(SEEDS, |seeds| seeds.parse().expect("SEEDS is a number"));
    let swept = sweep(0, seeds, &Options::default(), false);
    println!("{seeds} seeds, {:.1} per second", swept.rate());
    if let Some((_, report)) = swept.failures.first() {
        panic!("{report}");
    }
}

#[test]
fn a_seed_is_the_same_world_again() {
    for seed in 0..6 {
        let lived = || {
            let mut world = World::new(seed, &Options::default());
            world.run(u64::MAX);
            world.trace.entries
        };
        let (first, second) = (lived(), lived());
        let differs = first.iter().zip(&second).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

#[test]
fn other_sizes_of_cluster_keep_the_promises_too() {
    for (nodes, gateways, seeds) in [(1, 1, 8), (1, 3, 8), (5, 2, 100)] {
        let options = Options {
            nodes,
            gateways,
            ..Options::default()
        };
        let swept = sweep(0, seeds, &options, false);
        if let Some((_, report)) = swept.failures.first() {
            panic!("{nodes} nodes, {gateways} gateways: {report}");
        }
    }
}

/// The promise by which a mistake is found.
fn found(mistake: Mistake, seeds: u64) -> String {
    let options = Options {
        mistake: Some(mistake),
        ..Options::default()
    };
    let swept = sweep(0, seeds, &options, false);
    let first = swept.failures.first();
    let (seed, report) = first.unwrap_or_else(|| panic!("{mistake:?} is not found"));
    println!("{mistake:?}: seed {seed}");
    report.clone()
}

fn breaks(mistake: Mistake, promises: &[&str]) {
    breaks_within(MISTAKE_SEEDS, mistake, promises);
}

fn breaks_within(seeds: u64, mistake: Mistake, promises: &[&str]) {
    let report = found(mistake, seeds);
    let named = promises
        .iter()
        .any(|promise| report.contains(&format!("breaks {promise} ")));
    assert!(named, "{mistake:?} breaks something else: {report}");
}

#[test]
fn a_node_that_forgets_the_tail_beat_is_found() {
    // In a room, what is not noticed to be lost is who has come or gone.
    breaks(
        Mistake::NoTailBeat,
        &["acked_is_recoverable", "rosters_converge"],
    );
}

#[test]
fn an_owner_that_ignores_versions_of_interest_is_found() {
    // What is removed by mistake is missed until it heals; what is kept, never.
    breaks(
        Mistake::UnversionedInterest,
        &["interest_heals", "acked_is_recoverable"],
    );
}

#[test]
fn a_gateway_that_says_nothing_of_its_interest_is_found() {
    breaks(Mistake::NoDigests, &["interest_heals"]);
}

#[test]
fn a_publish_that_expires_without_a_skip_is_found() {
    breaks(Mistake::NoSkip, &["liveness"]);
}

#[test]
fn an_owner_that_forgets_results_is_found() {
    breaks(Mistake::ForgottenResults, &["exactly_once"]);
}

#[test]
fn an_owner_that_forgets_idempotency_keys_is_found() {
    breaks(Mistake::ForgottenKeys, &["exactly_once"]);
}

#[test]
fn a_gateway_that_trusts_the_order_of_links_is_found() {
    breaks(
        Mistake::LinkOrder,
        &["no_silent_gap", "acked_is_recoverable"],
    );
}

#[test]
fn an_epoch_that_outlives_its_channel_is_found() {
    breaks(Mistake::KeptEpoch, &["contiguous_offsets"]);
}

#[test]
fn a_gateway_that_delivers_repairs_as_they_come_is_found() {
    // Too early, and then once more in its place.
    let promises = ["no_duplicate_delivery", "no_silent_gap"];
    breaks(Mistake::RepairUnordered, &promises);
}

#[test]
fn a_window_that_answers_while_unattached_is_found() {
    breaks(Mistake::WindowUnattached, &["no_silent_gap"]);
}

#[test]
fn a_join_that_does_not_reach_back_is_found() {
    // Whoever waits goes on waiting, or never gets what came meanwhile.
    let promises = ["liveness", "acked_is_recoverable"];
    breaks(Mistake::JoinFromNow, &promises);
}

#[test]
fn an_owner_that_does_not_wait_for_its_standby_is_found() {
    breaks(
        Mistake::Unconfirmed,
        &[
            "contiguous_offsets",
            "acked_survives_one_crash",
            "same_order_everywhere",
        ],
    );
}

#[test]
fn a_pair_lease_that_is_counted_from_receipt_is_found() {
    breaks(Mistake::LeaseFromReceipt, &["one_owner"]);
}

#[test]
fn a_standby_that_does_not_refuse_is_found() {
    breaks(Mistake::NoRefusal, &["one_owner"]);
}

#[test]
fn a_promoted_standby_that_does_not_wait_is_found() {
    breaks(Mistake::NoWait, &["one_owner"]);
}

#[test]
fn a_publish_table_that_is_not_carried_is_found() {
    breaks(Mistake::TablesNotCarried, &["exactly_once"]);
}

#[test]
fn a_state_that_is_not_sent_is_found() {
    breaks(Mistake::ChannelsNotSent, &["acked_survives_one_crash"]);
}

#[test]
fn an_owner_that_drops_its_standby_alone_is_found() {
    breaks(
        Mistake::DroppedAlone,
        &[
            "one_owner",
            "contiguous_offsets",
            "acked_survives_one_crash",
        ],
    );
}

#[test]
fn a_leader_that_does_not_wait_for_leases_is_found() {
    breaks(Mistake::LapseNotWaited, &["one_owner"]);
}

#[test]
fn a_new_leader_that_forgets_the_leases_of_its_predecessor_is_found() {
    breaks(Mistake::NewLeaderInHaste, &["one_owner"]);
}

#[test]
fn a_leader_that_grants_without_a_quorum_round_is_found() {
    breaks(Mistake::NoRound, &["one_owner"]);
}

#[test]
fn a_standby_that_refuses_an_echo_too_late_is_found() {
    breaks(Mistake::RefusedLate, &["one_owner"]);
}

#[test]
fn a_checkpoint_that_is_used_whatever_has_been_since_is_found() {
    breaks(Mistake::StaleCheckpoint, &["contiguous_offsets"]);
}

#[test]
fn a_standby_that_lets_go_of_what_moves_is_found() {
    breaks(Mistake::ReplicaNotKept, &["acked_survives_one_crash"]);
}

#[test]
fn a_leader_that_judges_by_silence_though_it_hears_nobody_is_found() {
    breaks(Mistake::DeafLeaderJudges, &["acked_survives_one_crash"]);
}

#[test]
fn a_leader_that_gives_up_what_an_unreachable_node_has_is_found() {
    breaks(Mistake::UnreachableForsaken, &["acked_survives_one_crash"]);
}

#[test]
fn a_leader_that_does_not_ask_whether_others_hear_whom_it_does_not_is_found() {
    breaks(Mistake::OneJudges, &["acked_survives_one_crash"]);
}

#[test]
fn whoever_does_not_hear_itself_judges_nobody() {
    breaks(Mistake::DeafJudges, &["no_needless_death"]);
}

#[test]
fn silence_while_the_bus_is_away_does_not_count() {
    breaks(Mistake::OutageIsSilence, &["no_needless_death"]);
}

#[test]
fn nothing_is_sent_again_in_another_life() {
    // It takes places of the new life as well, so that answers are of another
    // publish.
    let promises = ["exactly_once", "same_order_everywhere"];
    breaks(Mistake::ResentInNextLife, &promises);
}

#[test]
fn a_gateway_that_wants_channels_of_a_new_owner_from_now_on_is_found() {
    let promises = ["liveness", "acked_is_recoverable"];
    breaks(Mistake::RestatedFromNow, &promises);
}

#[test]
fn a_standby_that_is_promoted_while_it_is_filled_is_found() {
    // The owner needs no lease of it, for it does not count there.
    let promises = [
        "contiguous_offsets",
        "acked_survives_one_crash",
        "one_owner",
    ];
    breaks(Mistake::FillingPromoted, &promises);
}

#[test]
fn a_restarted_node_that_goes_on_as_the_owner_is_found() {
    // What it goes on with is nothing, under epochs that were there or not.
    let promises = ["contiguous_offsets", "acked_survives_one_crash"];
    breaks(Mistake::OwnershipKept, &promises);
}

#[test]
fn an_owner_that_needs_no_lease_before_it_is_agreed_is_found() {
    breaks(Mistake::PairByMap, &["one_owner"]);
}

#[test]
fn an_owner_that_fans_out_before_its_standby_confirms_is_found() {
    // What waits for no confirmation waits for no lease either; and the next owner knows
    // nothing of what has been seen.
    let promises = [
        "contiguous_offsets",
        "same_order_everywhere",
        "one_owner",
        "no_stale_answer",
    ];
    breaks(Mistake::FannedOutEarly, &promises);
}

#[test]
fn a_channel_that_goes_on_though_nobody_has_it_is_found() {
    // Other publications get the offsets of those that are gone, or an answer is
    // given that knows nothing of them.
    breaks(
        Mistake::AloneGoesOn,
        &["contiguous_offsets", "no_stale_answer"],
    );
}

#[test]
fn a_leader_that_grants_while_it_gives_away_is_found() {
    breaks_within(
        RARE_MISTAKE_SEEDS,
        Mistake::GrantedMeanwhile,
        &["one_owner"],
    );
}

#[test]
fn a_leader_that_waits_for_the_last_owner_alone_is_found() {
    breaks(Mistake::EarlierNotWaited, &["one_owner"]);
}

#[test]
fn a_member_that_is_not_taken_leave_of_is_found() {
    breaks(Mistake::ExitLost, &["no_ghost"]);
}

#[test]
fn a_restatement_that_follows_what_contradicts_it_is_found() {
    breaks(Mistake::RestatedOutOfOrder, &["no_ghost"]);
}

#[test]
fn a_restatement_that_ends_too_early_is_found() {
    breaks(Mistake::StatedInPart, &["one_leave_per_lost_member"]);
}
