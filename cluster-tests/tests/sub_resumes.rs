//! `dunlin sub` on a connection that is cut while `dunlin pub` publishes: every
//! line comes once and in order, and nothing is said of a gap.

use anyhow::Result;
use cluster_tests::process::{Dev, Tool};
use cluster_tests::proxy::TcpProxy;

const CUTS: usize = 3;
/// Lines that are published for each cut; half of them after it.
const LINES: usize = 100;

#[tokio::test]
async fn event_streams_of_public_channels_resume() -> Result<()> {
    every_line_comes_once_and_in_order("lines").await
}

#[tokio::test]
async fn web_sockets_of_private_channels_resume() -> Result<()> {
    every_line_comes_once_and_in_order("private-lines").await
}

async fn every_line_comes_once_and_in_order(channel: &str) -> Result<()> {
    let server = Dev::start().await?;
    let proxy = TcpProxy::start(&server.clients).await?;
    let url = format!("http://{}", proxy.address());
    let mut sub = Tool::start(["sub", channel, "--url", &url])?;
    let mut notes = sub.notes_until("subscribed").await?;
    // What it has got is published.
    let mut witness = Tool::subscribe(&server, &[channel]).await?;
    let mut publishing = Tool::start(["pub", channel, "--url", &server.url()])?;
    for cut in 0..CUTS {
        let lines: Vec<String> = (0..LINES).map(|line| format!("{cut}.{line}")).collect();
        publishing.write(&(lines.join("\n") + "\n")).await?;
        for (number, line) in lines.iter().enumerate() {
            if number == LINES / 2 {
                proxy.refuse();
            }
            assert_eq!(&witness.line().await?, line);
        }
        notes.extend(sub.notes_until("trying again").await?);
        proxy.heal();
        notes.extend(sub.notes_until("subscribed").await?);
        for line in &lines {
            assert_eq!(&sub.line().await?, line);
        }
    }
    let ended = publishing.end().await?;
    assert!(ended.status.success(), "{ended:?}");
    let ended = sub.kill().await?;
    assert_eq!(ended.stdout, "", "no line came twice");
    notes.extend(ended.stderr.lines().map(str::to_owned));
    let gap = notes.iter().find(|note| note.contains("were lost"));
    assert_eq!(gap, None, "{notes:?}");
    Ok(())
}
