//! What changed, or would change, as people read it.

use super::{
    figures::{exact, plural},
    table::{Palette, Tone},
};
use crate::control::api;

/// Lines of one kind that a screen has room for.
const SHOWN: usize = 40;

/// What a change came to.
pub fn changed(changed: &api::Changed, palette: Palette) -> String {
    if !changed.changed {
        return "nothing to change: it is so already\n".to_owned();
    }
    lines(&changed.differences, palette)
}

/// What a file would change, and whom it would touch.
pub fn plan(plan: &api::Plan, palette: Palette) -> String {
    let mut text = match plan.changes {
        true => lines(&plan.differences, palette),
        false => "nothing would change\n".to_owned(),
    };
    let flows = plan.flows;
    text += &format!(
        "\nflows now    {}\n  stay       {}{}\n  drain      {}\n  cut        {}\n",
        exact(flows.total),
        exact(flows.flows_kept),
        match flows.flows_moved {
            0 => String::new(),
            moved => format!(", {} of them only because the flow table holds them", exact(moved)),
        },
        exact(flows.flows_drained),
        exact(flows.flows_cut),
    );
    for service in plan.slots.iter().take(SHOWN) {
        let share = service.moved as f64 / service.slots.max(1) as f64 * 100.0;
        text += &format!(
            "slots        {}: {share:.1} % of new flows would choose another backend\n",
            service.service
        );
    }
    if plan.slots.len() > SHOWN {
        let rest = plural((plan.slots.len() - SHOWN) as u64, "more service");
        text += &format!("             ... and {rest}: --json shows all\n");
    }
    for warning in &plan.warnings {
        text += &format!("warning: {warning}\n");
    }
    if let Some(refused) = &plan.refused {
        text += &format!("{}: {refused}\n", palette.paint(Tone::Bad, "apply would be refused"));
    }
    text
}

/// One line for each: `+` new, `-` going, `~` other than before.
fn lines(differences: &[api::Difference], palette: Palette) -> String {
    let mut text = String::new();
    for difference in differences.iter().take(SHOWN) {
        let (sign, tone) = match difference.action {
            api::Action::Add => ("+", Tone::Good),
            api::Action::Remove => ("-", Tone::Bad),
            api::Action::Change => ("~", Tone::Doubtful),
        };
        let name = match (&difference.service, &difference.backend) {
            (Some(service), Some(backend)) => format!("{service}/{backend}"),
            (Some(service), None) => service.clone(),
            (None, _) => "instance".to_owned(),
        };
        text += &format!("{} {name}  {}\n", palette.paint(tone, sign), difference.text);
    }
    if differences.len() > SHOWN {
        let rest = plural((differences.len() - SHOWN) as u64, "more difference");
        text += &format!("... and {rest}: --json shows all\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Palette = Palette { colours: false };

    fn differences() -> Vec<api::Difference> {
        let one = |action, backend: Option<&str>, text: &str| api::Difference {
            action,
            service: Some("web".into()),
            backend: backend.map(Into::into),
            text: text.into(),
        };
        vec![
            one(api::Action::Change, None, "drain_deadline 5m -> 30s"),
            one(api::Action::Remove, Some("web-3"), "10.0.0.13: drained, then removed"),
            one(api::Action::Add, Some("web-4"), "10.0.0.14 weight 100"),
        ]
    }

    #[test]
    fn a_plan_tells_whom_it_would_touch() {
        let planned = api::Plan {
            changes: true,
            differences: differences(),
            flows: api::PlannedFlows {
                total: 1300,
                flows_kept: 1200,
                flows_moved: 33,
                flows_drained: 100,
                flows_cut: 0,
            },
            slots: vec![api::PlannedSlots { service: "web".into(), moved: 21_845, slots: 65_537 }],
            refused: None,
            warnings: Vec::new(),
        };
        insta::assert_snapshot!(plan(&planned, PLAIN), @"
        ~ web  drain_deadline 5m -> 30s
        - web/web-3  10.0.0.13: drained, then removed
        + web/web-4  10.0.0.14 weight 100

        flows now    1,300
          stay       1,200, 33 of them only because the flow table holds them
          drain      100
          cut        0
        slots        web: 33.3 % of new flows would choose another backend
        ");
    }

    #[test]
    fn what_is_so_already_is_told() {
        let nothing = api::Changed::default();
        assert_eq!(changed(&nothing, PLAIN), "nothing to change: it is so already\n");
    }
}
