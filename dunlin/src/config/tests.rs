use proto::namespace::{HistoryLimits, Standby};

use super::*;
use crate::cli::server::{BusOptions, ClientOptions, ServerOptions};

fn problem(text: &str) -> (Option<usize>, String) {
    let file::Problem { line, message } = File::parse(text).expect_err("refused");
    (line, message)
}

const APP: &str = "[[apps]]\nid = \"a\"\nkey = \"k\"\nsecret = \"hunter2\"\n";
const NODE: &str = "name = \"n\"\ndata = \"d\"\ncerts = \"c\"\n";

fn node(more: &str) -> Result<Node, String> {
    Node::from_file(&File::parse(&format!("{NODE}{more}")).expect("a file"))
}

#[test]
fn problems_name_line_key_and_what_was_expected() {
    for (text, at, words) in [
        (
            "\nlisten = \"nowhere\"\n",
            2,
            ["listen", "expected IP:PORT"],
        ),
        (
            "listen = \"127.0.0.1:1\"\nlisten_adress = 7\n",
            2,
            ["listen_adress", "expected one of"],
        ),
        (
            &format!("{APP}colour = \"red\"\n"),
            5,
            ["colour", "expected"],
        ),
        (
            "[[apps]]\nid = \"a\"\nkey = 7\n",
            3,
            ["apps[0].key", "string"],
        ),
        (
            "[[apps]]\nid = \"a.b\"\nkey = \"k\"\nsecret = \"s\"\n",
            2,
            ["apps[0].id", "not a valid id"],
        ),
        (
            "\nquic_advertise = \"a\"",
            2,
            ["quic_advertise", "HOST:PORT"],
        ),
        ("join = [\"a:1\",\n\"b\"]", 1, ["join", "HOST:PORT"]),
        ("\nbootstrap_expect = 8", 2, ["bootstrap_expect", "1 to 7"]),
        ("zone = \"a b\"", 1, ["zone", "A-Z a-z 0-9 _ -"]),
        ("name = \"a.b\"", 1, ["name", "A-Z a-z 0-9 _ -"]),
        ("bus = \"a:4222\"", 1, ["bus", "nats://HOST:PORT"]),
    ] {
        let (line, message) = problem(text);
        assert!(
            words.iter().all(|word| message.contains(word)),
            "{text}: {message}"
        );
        // The parser knows of a list's item only where the list begins, or better.
        assert!(line.is_some_and(|line| line >= at), "{text}: {line:?}");
    }
    assert_eq!(problem("listen = ").0, Some(1));
}

#[test]
fn contradictions_are_found() {
    let (line, message) = problem(&format!("{APP}{APP}"));
    assert_eq!(line, Some(6));
    assert!(
        message.contains("apps[1].id") && message.contains("already"),
        "{message}"
    );
    let other = APP.replace("\"a\"", "\"b\"");
    let (line, message) = problem(&format!("{APP}{other}"));
    assert_eq!(line, Some(7));
    assert!(message.contains("apps[1].key"), "{message}");
    assert!(problem("activity_timeout_s = 0").1.contains("1 to 3600"));
    assert!(problem("drain_timeout_s = 3601").1.contains("0 to 3600"));
    assert!(problem("drain_window_s = 3601").1.contains("0 to 3600"));
    assert!(problem("outbox_age_max_s = 0").1.contains("1 to 3600"));
    assert!(problem("send_buffer_bytes = 1").1.contains("4096 to"));
    let zero = problem("[limits]\nconnections_max = 0\nmessages_per_s = 0");
    assert_eq!(zero.0, Some(3));
    assert!(zero.1.contains("limits.messages_per_s"), "{}", zero.1);
    assert!(problem("drain_per_s = 0").1.contains("at least 1"));
    assert!(problem("workers = 65").1.contains("0 to 64"));
    assert!(problem("outbox_bytes_max = 1").1.contains("65536"));
    assert!(
        problem(&format!("{APP}payload_bytes_max = 9000000"))
            .1
            .contains("payload_bytes_max")
    );
}

#[test]
fn proxies_are_networks_or_none() {
    let networks = |text: &str| {
        let proxies = text.parse::<TrustedProxies>();
        proxies.map(|proxies| (proxies.0.len(), String::from(proxies)))
    };
    assert_eq!(networks("none"), Ok((0, "none".into())));
    let several = "10.0.0.0/8,fd00::1/128".to_owned();
    assert_eq!(networks("10.0.0.0/8, fd00::1"), Ok((2, several)));
    for wrong in [
        "",
        "10.0.0.0/33",
        "proxy.example",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.1,",
    ] {
        let (line, message) = problem(&format!("\ntrusted_proxies = \"{wrong}\""));
        assert_eq!(line, Some(2));
        assert!(message.contains("ADDRESS/BITS"), "{message}");
    }
}

#[test]
fn tls_needs_certificate_and_key() {
    let dev = |text: &str| Dev::from_file(&File::parse(text).expect("a file"));
    let both = "tls_cert = \"a.crt\"\ntls_key = \"a.key\"\n";
    let clients = dev(both).unwrap().clients;
    assert_eq!((clients.tls().is_some(), clients.scheme()), (true, "https"));
    let plain = dev("").unwrap().clients;
    assert_eq!((plain.tls(), plain.scheme()), (None, "http"));
    for (clients, of_a_client) in [(&plain, 1), (&clients, 3)] {
        let limits = clients.limits(Some(3_000)).admission;
        let of_clients = of_a_client * (limits.connections_max + limits.refusals_max);
        let others = Room::RESERVED_FILES + Room::of(3_000, of_a_client).requests;
        let left = 3_000 - of_clients - others;
        assert!(left < of_a_client, "{left} of 3000 files are nobody's");
    }
    for (one, lacks) in [("tls_cert", "tls_key"), ("tls_key", "tls_cert")] {
        let problem = dev(&format!("{one} = \"a\"")).map(drop).unwrap_err();
        assert!(problem.contains(&format!("{lacks} is not")), "{problem}");
    }
}

#[test]
fn limits_by_address_are_off_until_proxies_are_known() {
    let limits = |text: &str| {
        let file = File::parse(text).expect("a file");
        let dev = Dev::from_file(&file).unwrap();
        dev.clients.limits(Some(1_024)).admission
    };
    assert_eq!(limits("").of_address, None);
    let on = limits("trusted_proxies = \"none\"\n[limits]\nconnects_per_ip_per_s = 7\n");
    let of_address = on.of_address.expect("on");
    assert_eq!(
        (of_address.connections_max, of_address.connects.burst),
        (2_000, 70)
    );
    // All that may be there together have files.
    let room = on.connections_max + on.refusals_max + Room::of(1_024, 1).requests;
    assert!(room < 1_024 && on.connections_max > 800, "{on:?}");
    assert_eq!(limits("[limits]\nconnections_max = 7\n").connections_max, 7);
    let many = limits("[limits]\nconnections_max = 1000000\n");
    assert_eq!(many.connections_max, on.connections_max, "files count");
}

#[test]
fn what_could_never_match_is_refused() {
    let origin = format!("{APP}allowed_origins = [\"https://example.com/\"]\n");
    assert_eq!(problem(&origin).0, Some(5));
    assert!(
        problem(&origin.replace("https://example.com/", "example.com"))
            .1
            .contains("allowed_origins")
    );
    assert!(File::parse(&origin.replace("com/", "com:8443")).is_ok());
    for pattern in ["", "private-chat-*", "presence-x"] {
        let (line, message) = problem(&format!("\n[[namespaces]]\nmatch = \"{pattern}\"\n"));
        assert_eq!(
            (line, message.contains("namespaces[0].match")),
            (Some(3), true),
            "{message}"
        );
    }
    let stranger = format!("{APP}[[namespaces]]\nmatch = \"*\"\napp = \"nobody\"\n");
    assert!(problem(&stranger).1.contains("nobody"));
}

#[test]
fn nobody_is_required_to_have_what_nobody_is_to_have() {
    let namespace = |settings: &str| format!("\n[[namespaces]]\nmatch = \"x-*\"\n{settings}");
    let both = namespace("standby = \"require\"\nack = \"owner\"\n");
    let (line, message) = problem(&both);
    assert_eq!(line, Some(5));
    assert!(message.contains("leave out one"), "{message}");
    let standby = |settings: &str| {
        let file = File::parse(&format!("{APP}{}", namespace(settings)));
        let namespaces = Dev::from_file(&file.expect("accepted"))
            .unwrap()
            .namespaces();
        namespaces.standby(&proto::channel::ChannelKey {
            app: "a".parse().unwrap(),
            channel: "x-1".parse().unwrap(),
        })
    };
    assert_eq!(standby("ack = \"owner\""), Standby::None);
    assert_eq!(
        standby("ack = \"owner\"\nstandby = \"prefer\""),
        Standby::None
    );
    assert_eq!(standby("standby = \"require\""), Standby::Require);
    assert_eq!(standby("ack = \"standby\""), Standby::Prefer);
}

#[test]
fn secrets_appear_in_no_message_and_no_printout() {
    for broken in [
        format!("{APP}x"),
        format!("{APP}x = 1"),
        format!("{APP}{APP}"),
        APP.replace("\"hunter2\"", "\"hunter2"),
        APP.replace("\"hunter2\"", "hunter2"),
        APP.replace("\"hunter2\"", "[\"hunter2\"]"),
        "bus = \"nats://u:hunter2\"".into(),
        "bus = \"hunter2@a\"".into(),
        "bus = [\"nats://u:hunter2@a\"]".into(),
        "bus = { url = \"nats://u:hunter2@a\" }".into(),
    ] {
        let (_, message) = problem(&broken);
        assert!(!message.contains("hunter2"), "{message}");
    }
    for broken in [
        APP.replace("\"hunter2\"", "998877"),
        "\n\n\nbus = 998877".into(),
    ] {
        let (line, message) = problem(&broken);
        assert_eq!(
            (line, message.contains("998877")),
            (Some(4), false),
            "{message}"
        );
    }
    let text = format!("bus = \"nats://u:hunter2@a,nats://b\"\n{APP}");
    let config = Gateway::from_file(&File::parse(&text).expect("accepted")).unwrap();
    let printed = to_toml(&config).unwrap();
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    assert!(
        printed.contains("secret = \"***\"") && printed.contains("bus = \"nats://***@a,nats://b\""),
        "{printed}"
    );
    assert_eq!(config.bus.bus.expose(), "nats://u:hunter2@a,nats://b");
}

#[test]
fn flags_overrule_the_file_and_replace_its_apps() {
    let file = std::env::temp_dir().join(format!("dunlin-config-{}.toml", std::process::id()));
    let text = format!(
        "listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\nbus = \"nats://b\"\njoin = [\"a:1\"]\n\
         witness = true\n{NODE}{APP}"
    );
    std::fs::write(&file, text).unwrap();
    let server = ServerOptions {
        config: Some(file.clone()),
        ..ServerOptions::default()
    };
    let clients = ClientOptions {
        listen: Some("127.0.0.1:3".parse().unwrap()),
        apps: vec!["b:l:t".parse().unwrap()],
        ..ClientOptions::default()
    };
    let bus = BusOptions {
        cluster: Some("c".parse().unwrap()),
        ..BusOptions::default()
    };
    let dev = Dev::resolve(&DevOptions {
        server: server.clone(),
        clients: clients.clone(),
    });
    let gateway = Gateway::resolve(&GatewayOptions {
        bus: bus.clone(),
        server: server.clone(),
        clients,
        drain_per_s: Some(7),
        ..GatewayOptions::default()
    });
    let node = Node::resolve(&NodeOptions {
        bus,
        server,
        join: vec!["b:2".parse().unwrap()],
        witness: Some(false),
        ..NodeOptions::default()
    });
    std::fs::remove_file(file).unwrap();
    let gateway = gateway.unwrap();
    assert_eq!((gateway.drain_window_s, gateway.drain_per_s), (10, 7));
    for clients in [dev.unwrap().clients, gateway.clients] {
        assert_eq!(clients.listen.port(), 3);
        assert_eq!(clients.apps.len(), 1);
        assert_eq!(clients.apps[0].id.as_str(), "b");
    }
    let node = node.unwrap();
    assert_eq!(node.server.admin.port(), 2);
    assert_eq!(node.bus.cluster.as_str(), "c");
    assert_eq!(node.bus.bus.expose(), "nats://b");
    assert_eq!(node.join, ["b:2".parse().unwrap()]);
    assert!(!node.witness);
}

#[test]
fn an_open_admin_address_needs_tokens() {
    let dev = |admin: &str| {
        let failure = Dev::resolve(&DevOptions {
            server: ServerOptions {
                admin: Some(admin.parse().unwrap()),
                ..ServerOptions::default()
            },
            ..DevOptions::default()
        })
        .unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        failure.error.to_string()
    };
    assert!(dev("0.0.0.0:9601").contains("--admin-token-file"));
    assert!(dev("127.0.0.1:6001").contains("both"));
    assert!(
        node("admin = \"0.0.0.0:1\"")
            .unwrap_err()
            .contains("--admin-token-file")
    );
}

#[test]
fn each_command_has_its_own_defaults() {
    let file = File::parse(&format!("{NODE}{APP}")).expect("one file for all");
    let dev = Dev::from_file(&file).unwrap();
    assert_eq!(dev.clients.listen, Dev::listens_by_default());
    assert_eq!(dev.server.admin, "127.0.0.1:9601".parse().unwrap());
    let gateway = Gateway::from_file(&file).unwrap();
    assert_eq!(gateway.clients.listen, "0.0.0.0:6001".parse().unwrap());
    assert_eq!(gateway.server.admin, "127.0.0.1:9601".parse().unwrap());
    assert_eq!(gateway.bus.bus.expose(), "nats://127.0.0.1:4222");
    assert_eq!(gateway.bus.cluster.as_str(), "dunlin");
    assert_eq!(gateway.name.as_str(), "n");
    let node = Node::from_file(&file).unwrap();
    assert_eq!(node.server.admin, "127.0.0.1:9611".parse().unwrap());
    assert_eq!(node.quic, "127.0.0.1:7601".parse().unwrap());
    assert_eq!(
        node.quic_advertise.unwrap().to_string(),
        "127.0.0.1:7601",
        "as quic"
    );
    assert_eq!((node.zone.as_str(), node.witness), ("", false));
    assert_eq!(node.drain_timeout_s, 20);
}

#[test]
fn processes_are_named_after_their_host() {
    let gateway = |listen: &str| {
        let file = File::parse(&format!("listen = \"127.0.0.1:{listen}\"\n{APP}"));
        let gateway = Gateway::from_file(&file.expect("accepted")).unwrap();
        gateway.name.as_str().to_owned()
    };
    let host = environment::host_name("").expect("this host has a name");
    assert_eq!(gateway("7000"), format!("{host}-7000"));
    assert_eq!(gateway("0"), format!("{host}-{}", std::process::id()));
    let file = File::parse("data = \"d\"\ncerts = \"c\"").expect("accepted");
    assert_eq!(Node::from_file(&file).unwrap().name, host);
}

#[test]
fn what_is_missing_is_said_with_the_flag_for_it() {
    let missing = |text: &str| {
        let file = File::parse(text).expect("accepted");
        Node::from_file(&file).unwrap_err()
    };
    assert!(missing("certs = \"c\"").contains("--data"));
    assert!(missing("data = \"d\"").contains("--certs"));
    assert!(missing("data = \"\"\ncerts = \"c\"").contains("--data"));
    let none = Gateway::from_file(&File::default()).unwrap_err();
    assert!(
        none.contains("--app") && none.contains("[[apps]]"),
        "{none}"
    );
    let long = File::parse(&NODE.replace("\"n\"", "\"n-\"")).expect("accepted");
    assert!(Node::from_file(&long).unwrap_err().contains("certificate"));
}

#[test]
fn others_are_told_an_address_that_they_can_reach() {
    let any = node("quic = \"0.0.0.0:7601\"").unwrap_err();
    assert!(any.contains("--quic-advertise"), "{any}");
    assert!(node("quic = \"[::]:0\"").is_err());
    assert!(node("quic_advertise = \"0.0.0.0:7601\"").is_err());
    let told = node("quic = \"0.0.0.0:7601\"\nquic_advertise = \"n.example:1\"").unwrap();
    assert_eq!(told.quic_advertise.unwrap().to_string(), "n.example:1");
    let bound = node("quic = \"127.0.0.1:0\"").unwrap();
    assert_eq!(bound.quic_advertise, None, "known when it is bound");
}

/// Read again, what was printed comes to the same, but for what is masked.
#[test]
fn printouts_are_configuration_files() {
    let text = format!(
        "join = [\"a:1\", \"[::1]:2\"]\nbootstrap_expect = 3\nzone = \"z\"\nquic = \"127.0.0.1:0\"\n\
         {NODE}{APP}[[namespaces]]\nmatch = \"x\"\n"
    );
    let file = File::parse(&text).expect("accepted");
    let again =
        |text: &str| File::parse(text).unwrap_or_else(|problem| panic!("{problem:?}: {text}"));
    let printed = to_toml(&Dev::from_file(&file).unwrap()).unwrap();
    assert_eq!(
        to_toml(&Dev::from_file(&again(&printed)).unwrap()).unwrap(),
        printed
    );
    let printed = to_toml(&Gateway::from_file(&file).unwrap()).unwrap();
    assert_eq!(
        to_toml(&Gateway::from_file(&again(&printed)).unwrap()).unwrap(),
        printed
    );
    let printed = to_toml(&Node::from_file(&file).unwrap()).unwrap();
    assert_eq!(
        to_toml(&Node::from_file(&again(&printed)).unwrap()).unwrap(),
        printed
    );
}

/// Every key is some command's, has a meaning, and is a flag as the page says.
#[test]
fn every_key_is_explained_and_used() {
    let page = reference::page();
    let keys = schemars::schema_for!(File).to_value();
    for key in keys["properties"].as_object().expect("keys").keys() {
        let start = format!("| `{key}` | ");
        let row = page.lines().find(|line| line.starts_with(&start));
        let cells: Vec<&str> = row
            .unwrap_or_else(|| panic!("{key} has a row"))
            .split(" | ")
            .collect();
        assert_eq!(cells.len(), 5, "{cells:?}");
        assert!(cells[1..4].iter().any(|cell| *cell != "–"), "{cells:?}");
        assert!(cells[4].len() > 5, "{cells:?}");
        for (command, cell) in ["dev", "gateway", "node"].into_iter().zip(&cells[1..4]) {
            assert_eq!(
                has_flag(command, key),
                *cell != "–" && !["limits", "namespaces"].contains(&key.as_str()),
                "{command}: {key}"
            );
        }
    }
}

/// Whether a command has the flag and the variable for a key, as the page says
/// they are called.
fn has_flag(command: &str, key: &str) -> bool {
    use clap::CommandFactory;
    let cli = crate::cli::Cli::command();
    let config = cli.find_subcommand("config").expect("config");
    let command = config.find_subcommand(command).expect("a command");
    let flag = match key {
        "apps" => "app".to_owned(),
        key => key.replace('_', "-"),
    };
    let variable = format!("DUNLIN_{}", key.to_ascii_uppercase());
    command.get_arguments().any(|argument| {
        argument.get_long() == Some(flag.as_str())
            && argument.get_env() == Some(std::ffi::OsStr::new(&variable))
    })
}

#[test]
fn namespaces_have_the_documented_defaults() {
    let file = File::parse(&format!(
        "{APP}[[namespaces]]\nmatch = \"chat-*\"\nhistory_age_s = 60\n"
    ));
    let namespaces = Dev::from_file(&file.expect("accepted"))
        .unwrap()
        .namespaces();
    let key = |channel: &str| proto::channel::ChannelKey {
        app: "a".parse().unwrap(),
        channel: channel.parse().unwrap(),
    };
    assert_eq!(
        namespaces.history(&key("private-chat-1")).age,
        Duration::from_secs(60)
    );
    assert_eq!(namespaces.history(&key("private-chat-1")).publications, 256);
    assert_eq!(namespaces.history(&key("news")), &HistoryLimits::default());
}

#[test]
fn what_may_wait_for_all_clients_is_no_less_than_for_one() {
    let outbox = |text: &str| {
        let dev = Dev::from_file(&File::parse(text).expect("a file"));
        dev.map(|dev| dev.clients.outbox().total_bytes_max)
    };
    assert_eq!(outbox(""), Ok(256 * 1_024 * 1_024));
    assert_eq!(outbox("outbox_bytes_max = 300000000"), Ok(300_000_000));
    let refused = outbox("outbox_bytes_total_max = 100000").unwrap_err();
    assert!(refused.contains("1048576"), "{refused}");
}
