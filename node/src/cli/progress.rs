//! A bar on a terminal while something long is under way; nothing of the kind in a pipe.

use cairn_protocol::api;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::Output;

/// One bar. Cleared when it goes.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// Hidden unless a person watches.
    pub(super) fn new(output: Output) -> Bar {
        let target = if output.is_watched() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{msg:24!} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .expect("the template is a constant that parses");
        Bar(ProgressBar::with_draw_target(None, target).with_style(style))
    }

    /// Shows how far it is.
    pub(super) fn show(&self, progress: &api::Progress) {
        self.0.set_length(progress.bytes_total.max(progress.bytes_done));
        self.0.set_position(progress.bytes_done);
        self.0.set_message(match progress.place {
            0 => format!("{} {}", progress.phase, progress.item),
            place => format!("waiting: number {place} in line at {}", progress.item),
        });
    }

    /// Takes it off the screen before something is printed.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}
