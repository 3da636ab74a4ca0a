pub(crate) fn run(_: &Options) -> Result<(), crate::exit::Failure> {
    Ok(())
}
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}
