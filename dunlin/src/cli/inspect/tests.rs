use super::*;
use crate::admin::inspect::{ChannelState, Event, Follower, Gateway, Node, OneStandby};

fn life(id: &str, incarnation: u64) -> Ref {
    Ref {
        id: id.to_owned(),
        incarnation,
    }
}

#[test]
fn shards_are_summed_up_by_owner() {
    let shard = |shard: u16, owner: Option<Ref>, fence: u64| Shard {
        shard,
        owner,
        fence,
        standbys: match shard {
            3 => None,
            1 => Some(Vec::new()),
            _ => Some(vec!["c".into(), "a".into()]),
        },
        moves_to: (shard == 2).then(|| "a".into()),
    };
    let shards = Shards {
        cluster: "00ff".into(),
        version: 12,
        shards: vec![
            shard(0, Some(life("b", 3)), 7),
            shard(1, Some(life("a", 9)), 12),
            shard(2, Some(life("b", 3)), 5),
            shard(3, None, 0),
        ],
    };
    assert_eq!(
        print_shards(&shards, false),
        "cluster 00ff, map version 12, 4 shards\n\n\
         node  incarnation  shards  lowest fence  highest fence  without standby  to another owner\n\
         -               0       1             0              0                0                 0\n\
         a               9       1            12             12                1                 0\n\
         b               3       2             5              7                0                 1\n"
    );
    assert_eq!(
        print_shards(&shards, true),
        "cluster 00ff, map version 12, 4 shards\n\n\
         shard  node  incarnation  fence  standbys  moves to\n\
         \u{20}   0  b               3      7  c a       -\n\
         \u{20}   1  a               9     12  -         -\n\
         \u{20}   2  b               3      5  c a       a\n\
         \u{20}   3  -               0      0  ?         -\n"
    );
}

#[test]
fn a_shard_is_shown_with_its_leases_and_how_far_its_standbys_are() {
    let standby = |id: &str, state: &str, lag_records, lag_ms, lease_ms| OneStandby {
        node: life(id, 7),
        state: state.into(),
        lag_records,
        lag_ms,
        lease_ms,
    };
    let mut shard = OneShard {
        shard: 9,
        owner: life("n", 4),
        fence: 11,
        state: "waits".into(),
        waits_for: Some("confirmation by its standby m".into()),
        waits_ms: 120,
        held: 2,
        channels: 5,
        interest: 6,
        node_lease_ms: Some(2_500),
        standbys: vec![
            standby("m", "in_sync", 3, Some(120), 180),
            standby("o", "filling", 40, None, 0),
        ],
        moves_to: Some("o".into()),
    };
    assert_eq!(
        print_shard(&shard),
        "shard    9\nowner    n (incarnation 4)\nfence    11\nstate    waits\n\
         waits    for confirmation by its standby m: 2 to perform, since 120 ms\n\
         lease    from the leader, for another 2500 ms\nmoves to o\n\
         channels 5, and 6 pairs of gateway and channel\n\n\
         standby  incarnation  state    lag records  lag ms  lease ms\n\
         m                  7  in sync            3  120          180\n\
         o                  7  filling           40  ?              0\n"
    );
    shard.standbys.clear();
    (shard.waits_for, shard.moves_to) = (None, None);
    shard.node_lease_ms = None;
    shard.state = "serves".into();
    assert_eq!(
        print_shard(&shard),
        "shard    9\nowner    n (incarnation 4)\nfence    11\nstate    serves\n\
         lease    needs none: the node is alone\n\
         channels 5, and 6 pairs of gateway and channel\nstandbys none\n"
    );
}

#[test]
fn events_are_rows() {
    let event = |kind: &str, from, to, shards| Event {
        at: "2026-11-26T20:31:03.612Z".into(),
        version: 112,
        kind: kind.into(),
        from,
        to,
        shards,
    };
    let (a, b) = (Some(life("a", 3)), Some(life("b", 9)));
    let events = vec![
        event("failed_over", a.clone(), b.clone(), 341),
        event("started", None, b, 0),
        event("drains", a, None, 0),
    ];
    assert_eq!(
        print_events(&Events { events }),
        "at                        what         from   to     shards\n\
         2026-11-26T20:31:03.612Z  failed over  a (3)  b (9)     341\n\
         2026-11-26T20:31:03.612Z  started      -      b (9)       -\n\
         2026-11-26T20:31:03.612Z  drains       a (3)  -           -\n"
    );
}

#[test]
fn nodes_and_gateways_are_rows() {
    let node = Node {
        name: "n1".into(),
        incarnation: None,
        address: "10.0.0.1:7601".into(),
        zone: String::new(),
        witness: true,
        role: "voter".into(),
        gossip: "alive".into(),
        shards: 0,
        version: "0.1.0\u{1b}".into(),
    };
    assert_eq!(
        print_nodes(&Nodes { nodes: vec![node] }),
        "node  incarnation  address        zone  role   witness  gossip  shards  version\n\
         n1    -            10.0.0.1:7601  -     voter  yes      alive        0  0.1.0\\u{1b}\n"
    );
    let gateway = Gateway {
        name: "g".into(),
        incarnation: 5,
        heard_ms: 40,
        map_version: 12,
        connections: 1_000,
    };
    assert_eq!(
        print_gateways(&Gateways {
            gateways: vec![gateway]
        }),
        "gateway  incarnation  heard ms ago  map version  connections\n\
         g                  5            40           12         1000\n"
    );
}

#[test]
fn a_channel_is_told_with_its_followers() {
    let mut channel = Channel {
        app: "a".into(),
        channel: "news".into(),
        shard: 9,
        owner: life("n", 4),
        fence: 11,
        state: None,
    };
    assert!(print_channel(&channel).contains("nobody follows"));
    channel.state = Some(ChannelState {
        epoch: "00000000000000ab".into(),
        offset: 20,
        earliest: 11,
        kept: 10,
        ack: "standby".into(),
        followers: vec![Follower {
            gateway: life("g", 1),
            subscribers: 3,
        }],
    });
    assert_eq!(
        print_channel(&channel),
        "channel  news\napp      a\nshard    9\nowner    n (incarnation 4)\nfence    11\n\
         epoch    00000000000000ab\noffset   20\nkept     10 publications, from offset 11\nack      standby\n\n\
         gateway  incarnation  subscribers\n\
         g                  1            3\n"
    );
}

#[test]
fn an_admin_address_may_be_written_as_servers_take_it() {
    for (text, url) in [
        ("127.0.0.1:9601", "http://127.0.0.1:9601"),
        ("[::1]:9601", "http://[::1]:9601"),
        ("node-1:9611", "http://node-1:9611"),
        ("http://node-1:9611", "http://node-1:9611"),
    ] {
        let server: AdminServer = text.parse().unwrap();
        assert_eq!(server.0.to_string(), url);
    }
    for text in ["", "ftp://a", "a/b"] {
        let error = text.parse::<AdminServer>().unwrap_err();
        assert!(error.contains("IP:PORT"), "{error}");
    }
}
