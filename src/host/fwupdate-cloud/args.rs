//! The command line.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args as ClapArgs, Parser, Subcommand};
use fwupdate::cli::update::UpdateOptions;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Updates gateways through Azure IoT Hub, or its local stand-in.
///
/// Exit status: 0 done, 1 failed, 2 usage, 3 refused, 4 the hub or the gateway cannot be reached.
#[derive(Debug, Parser)]
#[command(name = "fwupdate-cloud", version)]
pub struct Args {
    /// File with a service connection string: HostName=...;SharedAccessKeyName=...;SharedAccessKey=...
    #[arg(long, value_name = "FILE", global = true)]
    pub connection_string_file: Option<PathBuf>,
    /// PEM file of a certificate authority to trust beside the system's.
    #[arg(long, value_name = "FILE", global = true)]
    pub ca: Option<PathBuf>,
    /// Print JSON; errors, too.
    #[arg(long, global = true)]
    pub json: bool,
    /// Print package URLs whole in JSON: with the passwords and tokens in them.
    #[arg(long, global = true)]
    pub secrets: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start an update on one gateway by the direct method firmwareUpdate.
    Invoke(Invoke),
    /// Follow an update to its outcome; the exit status is the outcome.
    Watch(WatchArgs),
    /// Start an update on all gateways that a query selects, by a job of IoT Hub.
    Rollout(Rollout),
    /// Show, follow or cancel a job that `rollout` ordered.
    Job(JobArgs),
    /// Automatic device configurations: an update for every gateway that fits a condition, now or later.
    #[command(subcommand)]
    Config(Config),
    /// Show what a gateway reports.
    Twin {
        #[arg(value_name = "DEVICE")]
        device: String,
    },
}

#[derive(Debug, ClapArgs)]
pub struct Invoke {
    #[arg(value_name = "DEVICE")]
    pub device: String,
    #[command(flatten)]
    pub update: Update,
    /// Seconds to wait for a gateway that is not connected, at most 300.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=300))]
    pub connect_timeout: u64,
    /// Seconds to wait for the gateway's answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=300))]
    pub response_timeout: u64,
    /// Follow the update to its outcome, which is then the exit status.
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Rollout {
    /// The condition of the query, such as "tags.ring = 'canary'"; * selects all.
    #[arg(long, value_name = "QUERY", value_parser = NonEmptyStringValueParser::new())]
    pub query: String,
    #[command(flatten)]
    pub update: Update,
    /// Start then (RFC 3339, such as 2030-01-31T22:00:00Z); without it, now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub start: Option<String>,
    /// Seconds that the job may take to call all gateways.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=172_800))]
    pub max_seconds: u64,
    /// Seconds to wait for each gateway that is not connected, at most 300.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=300))]
    pub connect_timeout: u64,
    /// Show a live summary until every gateway has its outcome; the exit status is 0 when all committed.
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, ClapArgs)]
pub struct WatchArgs {
    #[arg(value_name = "DEVICE")]
    pub device: String,
    /// The operation to follow; without it the one that runs, else the last one.
    #[arg(long, value_name = "ID")]
    pub operation_id: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct JobArgs {
    #[arg(value_name = "ID")]
    pub id: String,
    /// Show a live summary until every gateway has its outcome; the exit status is 0 when all committed.
    #[arg(long)]
    pub watch: bool,
    /// Call no further gateway; those that were called go on.
    #[arg(long, conflicts_with = "watch")]
    pub cancel: bool,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Make a configuration, or change all of it but its content.
    Apply(Box<Apply>),
    /// Show a configuration with its metrics.
    Show {
        #[arg(value_name = "ID")]
        id: String,
        /// Show live counts until every gateway has its outcome; the exit status is 0 when all committed.
        #[arg(long)]
        watch: bool,
    },
    /// List all configurations.
    List,
    /// Delete a configuration: no further gateway is told.
    Delete {
        #[arg(value_name = "ID")]
        id: String,
        /// Also take the update back, by a job, from gateways that were told; what is armed goes on.
        #[arg(long)]
        cancel: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub struct Apply {
    /// JSON file with a whole configuration; without it, --id, --query, --uri and --version say what it holds.
    #[arg(value_name = "FILE", conflicts_with_all = ["id", "query", "uri", "UpdateOptions"])]
    pub file: Option<PathBuf>,
    /// Name of the configuration: lower-case letters, digits, dashes and dots.
    #[arg(long, value_name = "ID", required_unless_present = "file")]
    pub id: Option<String>,
    /// Which gateways it is for, such as "tags.ring = 'canary'"; * selects all.
    #[arg(long, value_name = "CONDITION", required_unless_present = "file",
        value_parser = NonEmptyStringValueParser::new())]
    pub query: Option<String>,
    /// Of several configurations that fit a gateway, the highest priority holds.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, conflicts_with = "file")]
    pub priority: u32,
    /// A label of the configuration; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", conflicts_with = "file")]
    pub labels: Vec<String>,
    /// https URL of the bundle.
    #[arg(long, value_name = "URI", required_unless_present = "file")]
    pub uri: Option<String>,
    #[command(flatten)]
    pub options: UpdateOptions,
    #[command(flatten)]
    pub pinning: Pinning,
    /// Then show live counts, as `config show --watch` does.
    #[arg(long)]
    pub watch: bool,
}

/// The fields of firmwareUpdate.
#[derive(Debug, ClapArgs)]
pub struct Update {
    /// https URL of the bundle.
    #[arg(long, value_name = "URI")]
    uri: String,
    #[command(flatten)]
    pub options: UpdateOptions,
    #[command(flatten)]
    pub pinning: Pinning,
}

/// How the manifest's digest is found, unless it is given.
#[derive(Debug, ClapArgs)]
pub struct Pinning {
    /// A local copy of the bundle: its manifest is the one that gateways must find.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["no_pin", "manifest_sha256"])]
    pub bundle: Option<PathBuf>,
    /// Do not read the bundle's manifest to pin it: gateways take any bundle at the URL that their keys trust.
    #[arg(long, conflicts_with = "manifest_sha256")]
    pub no_pin: bool,
}

impl Update {
    /// The method's payload.
    pub fn payload(&self) -> Map<String, Value> {
        let mut fields = self.options.fields();
        fields.insert("fwPackageUri".into(), self.uri.clone().into());
        fields
    }
}

/// A time that the hub will understand.
fn time(text: &str) -> Result<String, String> {
    let read = OffsetDateTime::parse(text, &Rfc3339);
    read.map(|_| text.to_owned()).map_err(|why| format!("it is no time in RFC 3339: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn invoke_becomes_a_payload() {
        let line = "fwupdate-cloud --connection-string-file f invoke gw --uri https://h/x.fwb --version 1.5.0 --force \
                    --max-download-bytes 5 --watch";
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Invoke(invoke) = args.command else { panic!("{:?}", args.command) };
        let expected = json!({"fwPackageUri": "https://h/x.fwb", "version": "1.5.0", "force": true, "maxDownloadBytes": 5});
        assert_eq!(Value::Object(invoke.update.payload()), expected);
        assert!(invoke.watch && invoke.connect_timeout == 0);
    }

    #[test]
    fn times_are_what_the_hub_takes() {
        let late = "fwupdate-cloud rollout --query * --uri https://h/x --start tomorrow";
        assert!(Args::try_parse_from(late.split(' ')).unwrap_err().to_string().contains("RFC 3339"));
        for wrong in ["--connect-timeout 301", "--response-timeout 4"] {
            let line = format!("fwupdate-cloud invoke gw --uri https://h/x {wrong}");
            assert!(Args::try_parse_from(line.split_whitespace()).is_err(), "{wrong}");
        }
    }
}
