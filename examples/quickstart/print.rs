//! One line per step, as it happens.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::{path::Path, time::Instant};

use serde_json::json;

/// Prints the steps.
#[derive(Debug)]
pub(crate) struct Printer {
    json: bool,
    step: Option<(&'static str, Instant)>,
    began: Instant,
}

impl Printer {
    /// Creates a printer, for people or for a script.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, step: None, began: Instant::now() }
    }

    /// Begins a step; its time counts from here.
    pub(crate) fn begin(&mut self, step: &'static str) {
        self.step = Some((step, Instant::now()));
    }

    /// Ends the step that was begun: it holds, and this was seen.
    pub(crate) fn seen(&mut self, seen: &str) {
        let Some((step, began)) = self.step.take() else { return };
        let milliseconds = began.elapsed().as_millis();
        if self.json {
            println!("{}", json!({"step": step, "ok": true, "seen": seen, "ms": milliseconds}));
        } else {
            println!("\u{2713} {step:<52} {seen}  ({milliseconds} ms)");
        }
    }

    /// Ends with the step that failed.
    pub(crate) fn failed(&mut self, error: &anyhow::Error) {
        let (step, began) = self.step.take().unwrap_or(("starting", self.began));
        let milliseconds = began.elapsed().as_millis();
        if self.json {
            println!(
                "{}",
                json!({"step": step, "ok": false, "error": format!("{error:#}"), "ms": milliseconds})
            );
        } else {
            println!("\u{2717} {step:<52} {error:#}  ({milliseconds} ms)");
        }
    }

    /// Prints what to try next.
    pub(crate) fn invite(&self, kubeconfig: &Path) {
        let path = kubeconfig.display();
        let seconds = self.began.elapsed().as_secs_f64();
        if self.json {
            println!("{}", json!({"kubeconfig": path.to_string(), "seconds": seconds}));
            return;
        }
        println!("\nAll of it in {seconds:.1} s. With --keep it stays up for kubectl:");
        println!("  kubectl --kubeconfig {path} get nodes,pods,devices");
        println!("  kubectl --kubeconfig {path} logs thermostat --follow");
        println!("  kubectl --kubeconfig {path} get device room -o yaml");
    }

    /// Prints a remark for people.
    pub(crate) fn note(&self, note: &str) {
        if !self.json {
            println!("{note}");
        }
    }
}
