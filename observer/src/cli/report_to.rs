//! Whom an agent tells what it learns.

use std::path::PathBuf;

use clap::Args;

use crate::transport::client::Config;

/// Whom an agent tells what it learns.
#[derive(Clone, Debug, Args)]
pub struct ReportTo {
    /// Report to the aggregator at this address instead of printing; the name of a headless Service stands for all its replicas
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    aggregator: Option<String>,
    /// Name that the aggregator's certificate must be for; without it the host of `--aggregator`
    #[arg(long, value_name = "NAME", requires = "aggregator")]
    aggregator_name: Option<String>,
    /// File with the authorities that may have signed that certificate, as the aggregator publishes them; read for each connection
    #[arg(
        long,
        value_name = "FILE",
        requires = "aggregator",
        default_value = "/var/run/secrets/sidescope/ca.crt"
    )]
    aggregator_ca: PathBuf,
    /// File with this agent's service-account token (audience `sidescope`); read for each connection
    #[arg(
        long,
        value_name = "FILE",
        requires = "aggregator",
        default_value = "/var/run/secrets/sidescope/token"
    )]
    token: PathBuf,
}

impl ReportTo {
    /// What the client needs, which asks this clock (nanoseconds of CLOCK_MONOTONIC); `None`: there is nobody to report to.
    pub fn config(&self, clock: fn() -> u64) -> Option<Config> {
        let address = self.aggregator.clone()?;
        let host =
            || address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']).to_owned();
        Some(Config {
            server_name: self.aggregator_name.clone().unwrap_or_else(host),
            bundle: self.aggregator_ca.clone(),
            token: self.token.clone(),
            address,
            clock,
        })
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    let parts = text
        .rsplit_once(':')
        .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    match parts {
        // An IPv6 address without brackets ends with something that looks like a port.
        Some((host, _)) if !host.contains(':') || (host.starts_with('[') && host.ends_with(']')) => {
            Ok(text.to_owned())
        }
        _ => Err("expected a host and a port, such as sidescope-aggregator.sidescope.svc:15443".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn config(more: &[&str]) -> Result<Option<Config>, clap::Error> {
        let cli = Cli::try_parse_from(["sidescope", "agent"].iter().chain(more));
        cli.map(|cli| match cli.command {
            Command::Agent(agent) => agent.report_to.config(|| 0),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn an_aggregator_is_an_address_and_the_files_that_a_pod_has() {
        assert!(config(&[]).unwrap().is_none());
        let found = config(&["--aggregator", "sidescope.mesh.svc:15443"]).unwrap().unwrap();
        assert_eq!(found.address, "sidescope.mesh.svc:15443");
        assert_eq!(found.server_name, "sidescope.mesh.svc");
        assert!(found.bundle.ends_with("sidescope/ca.crt") && found.token.ends_with("sidescope/token"));
        let more = ["--aggregator", "[fd00::1]:1", "--aggregator-name", "a", "--token", "t"];
        let found = config(&more).unwrap().unwrap();
        assert_eq!((found.server_name.as_str(), found.token), ("a", PathBuf::from("t")));
        assert_eq!(config(&more[..2]).unwrap().unwrap().server_name, "fd00::1");
        for bad in
            [["--token", "t"], ["--aggregator", "a"], ["--aggregator", "a:0"], ["--aggregator", "fd00::1"]]
        {
            assert!(config(&bad).is_err(), "{bad:?}");
        }
    }
}
