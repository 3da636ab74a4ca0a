//! `dunlin config`: what file, environment and flags come to.

use super::ServerOptions;
use crate::config::Config;
use crate::exit::Failure;

pub(crate) fn run(options: &ServerOptions) -> Result<(), Failure> {
    print!("{}", Config::resolve(options)?.masked());
    Ok(())
}
