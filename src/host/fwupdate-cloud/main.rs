//! `fwupdate-cloud`: what an operator, or a pipeline, does with a hub's gateways from afar.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 the hub or the gateway cannot be reached. Errors are one
//! sentence on stderr, or `{"error":{"code","message"}}` with `--json`.

mod args;
mod config;
mod error;
mod fields;
mod output;
mod patience;
mod pin;
mod rollout;
mod service;
mod watch;

use std::io::{ErrorKind, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use fwupdate::cli::plain::plain;
use fwupdate::cli::screen::{Screen, Style};
use fwupdate::cli::{show, usage};
use serde_json::Value;

use crate::args::{Args, Command, Invoke, JobArgs, Rollout};
use crate::error::Error;
use crate::service::Service;
use crate::watch::{DeviceWatch, Start};

fn main() -> ExitCode {
    usage::start("1", start)
}

fn start(args: Args) -> ExitCode {
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has seen enough.
        Err(Error::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            usage::tell(&if args.json { error.json() } else { error.sentence() });
            error.exit().into()
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    let file = args.connection_string_file.as_deref().ok_or_else(|| {
        Error::Usage(
            "--connection-string-file is missing: name a file with a service connection string".into(),
        )
    })?;
    let service = Service::open(file, args.ca.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(perform(args, &service))
}

async fn perform(args: &Args, service: &Service) -> Result<(), Error> {
    match &args.command {
        Command::Invoke(invoke) => self::invoke(args, service, invoke).await,
        Command::Watch(asked) => {
            follow(args, service, &asked.device, asked.operation_id.clone(), Start::Found).await
        }
        Command::Rollout(asked) => self::rollout(args, service, asked).await,
        Command::Job(asked) => job(args, service, asked).await,
        Command::Config(asked) => config::perform(args, service, asked, &mut std::io::stdout()).await,
        Command::Twin { device } => twin(args, service, device).await,
    }
}

async fn invoke(args: &Args, service: &Service, invoke: &Invoke) -> Result<(), Error> {
    let mut payload = invoke.update.payload();
    pin::add(args, &invoke.update.pinning, &mut payload).await?;
    let (connect, response) =
        (Duration::from_secs(invoke.connect_timeout), Duration::from_secs(invoke.response_timeout));
    let call = Value::Object(payload);
    let answer = service.invoke(&invoke.device, "firmwareUpdate", call, connect, response).await?;
    if answer.status != 200 {
        return Err(Error::of_gateway(answer.status, &answer.payload));
    }
    if let Some(last) = answer.payload.get("last") {
        // The operation of this id ended before the call, which began nothing.
        Screen::new(style(args)).finish(last, &mut std::io::stdout())?;
        return verdict(last);
    }
    let id = answer.payload.get("operationId").and_then(Value::as_str).map(str::to_owned);
    if invoke.watch {
        let id = id.ok_or_else(|| Error::failed("Internal", "the gateway names no operation to watch"))?;
        return follow(args, service, &invoke.device, Some(id), Start::Awaited).await;
    }
    let accepted = format!("Accepted (operation {}).\n", id.as_deref().map_or("-".into(), plain));
    output::print(args, &answer.payload, &accepted, &mut std::io::stdout())
}

fn style(args: &Args) -> Style {
    Style::of(args.json, std::io::stdout().is_terminal())
}

async fn follow(
    args: &Args,
    service: &Service,
    device: &str,
    id: Option<String>,
    start: Start,
) -> Result<(), Error> {
    let watch = DeviceWatch { service, device, style: style(args), start };
    verdict(&watch.until_done(id, &mut std::io::stdout()).await?)
}

fn verdict(last: &Value) -> Result<(), Error> {
    match last.get("result").and_then(Value::as_str) {
        Some("committed") => Ok(()),
        _ => Err(Error::of_outcome(last)),
    }
}

async fn rollout(args: &Args, service: &Service, asked: &Rollout) -> Result<(), Error> {
    let made = || format!("fwupdate-{:016x}", fastrand::u64(..));
    let id = asked.update.options.operation_id().map_or_else(made, str::to_owned);
    check_job(&id)?;
    let mut payload = asked.update.payload();
    pin::add(args, &asked.update.pinning, &mut payload).await?;
    let job = service.order_job(&id, rollout::order(&id, asked, payload)).await?;
    if asked.watch {
        return rollout::follow(service, &id, args.json, &mut std::io::stdout()).await;
    }
    let ordered = format!("Job {id} is ordered; each gateway's operation has the same id.\n");
    output::print(args, &job, &ordered, &mut std::io::stdout())
}

async fn job(args: &Args, service: &Service, asked: &JobArgs) -> Result<(), Error> {
    // The id stands in queries; no job of ours has another sign.
    check_job(&asked.id)?;
    let out = &mut std::io::stdout();
    match (asked.watch, asked.cancel) {
        (true, _) => rollout::follow(service, &asked.id, args.json, out).await,
        (false, true) => {
            service.cancel_job(&asked.id).await?;
            rollout::show(service, &asked.id, args.json, out).await
        }
        (false, false) => rollout::show(service, &asked.id, args.json, out).await,
    }
}

fn check_job(id: &str) -> Result<(), Error> {
    let good =
        (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let wrong = || Error::Usage("a job's id has 1 to 64 letters, digits and dashes".into());
    good.then_some(()).ok_or_else(wrong)
}

async fn twin(args: &Args, service: &Service, device: &str) -> Result<(), Error> {
    let twin = service.twin(device).await?;
    let connection = twin.get("connectionState").and_then(Value::as_str).unwrap_or("unknown");
    let reported = twin.pointer("/properties/reported").unwrap_or(&Value::Null);
    let (name, connection) = (plain(device), plain(&connection.to_lowercase()));
    let head = format!("{:<10}{name}, {connection}\n", "Gateway");
    output::print(args, &twin, &show::headed_status(&head, reported), &mut std::io::stdout())
}
