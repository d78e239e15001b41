//! `policy generations`, `policy rollback`, `policy release`.

use super::list;
use crate::{
    paint::{Colour, Paint},
    table::{self, number, text},
    units,
};
use bulkhead_api::messages::GenerationInfo;

/// `now`: Unix time, seconds.
pub fn generations(generations: &[GenerationInfo], now: u64, paint: Paint) -> String {
    let row = |(n, g): (usize, &GenerationInfo)| {
        let age = units::duration(now.saturating_sub(g.since));
        let state = match (n, g.rollback_of) {
            (0, None) => text("in force").colour(Colour::Good),
            (0, Some(of)) => text(format!("in force, the objects of {of}")).colour(Colour::Warning),
            (_, None) => text("-"),
            (_, Some(of)) => text(format!("the objects of {of}")),
        };
        vec![
            number(g.generation),
            text(format!("{age} ago")),
            state,
            number(g.objects.len()),
            text(changed(&g.changed)),
        ]
    };
    let header = ["GENERATION", "SINCE", "STATE", "OBJECTS", "CHANGED"];
    table::with_header(&header, generations.iter().enumerate().map(row).collect(), paint)
}

/// With all objects that each was made from.
pub fn generations_in_full(all: &[GenerationInfo], now: u64, paint: Paint) -> String {
    let objects = all.iter().flat_map(|g| &g.objects).map(|name| format!("  {name}\n"));
    [generations(all, now, paint)].into_iter().chain(objects).collect()
}

/// More are for programs.
const SHOWN: usize = 8;

fn changed(names: &[String]) -> String {
    match names.len().saturating_sub(SHOWN) {
        0 | 1 => list(names),
        more => format!("{} and {more} more", list(&names[..SHOWN])),
    }
}

pub fn generation(info: &GenerationInfo) -> String {
    let changed = changed(&info.changed);
    match info.rollback_of {
        Some(of) => format!(
            "generation {} is in force with the objects of {of}: {changed}\n\
             the source is held until `bulkhead policy release`\n",
            info.generation
        ),
        None => format!("generation {} is in force, from the source: {changed}\n", info.generation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::PLAIN;

    fn info(generation: u32, rollback_of: Option<u32>) -> GenerationInfo {
        let (objects, changed) = (vec!["Partition/web".into()], vec!["~Partition/web".into()]);
        GenerationInfo { generation, since: 100, rollback_of, objects, changed }
    }

    #[test]
    fn generations_show_what_is_in_force_and_where_it_came_from() {
        let shown = generations(&[info(7, Some(5)), info(6, None)], 160, PLAIN);
        let expected = "\
GENERATION  SINCE      STATE                       OBJECTS  CHANGED
         7  1 min ago  in force, the objects of 5        1  ~Partition/web
         6  1 min ago  -                                 1  ~Partition/web
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_was_brought_back_is_told_of_former_generations_too() {
        let shown = generations(&[info(8, None), info(7, Some(5))], 160, PLAIN);
        let states: Vec<&str> = shown.lines().skip(1).map(|l| l[23..].split("  ").next().unwrap()).collect();
        assert_eq!(states, ["in force", "the objects of 5"]);
    }

    #[test]
    fn one_generation_is_told_with_its_objects() {
        let shown = generations_in_full(&[info(7, None)], 160, PLAIN);
        assert!(shown.ends_with("  ~Partition/web\n  Partition/web\n"), "{shown}");
    }

    #[test]
    fn a_great_change_is_counted_and_not_printed() {
        let mut great = info(7, None);
        great.changed = (0..30).map(|n| format!("+NetworkGroup/g{n}")).collect();
        assert!(generations(&[great], 160, PLAIN).ends_with(", +NetworkGroup/g7 and 22 more\n"));
    }

    #[test]
    fn a_rollback_says_that_the_source_is_held() {
        assert!(generation(&info(7, Some(5))).contains("held until `bulkhead policy release`"));
        assert_eq!(generation(&info(7, None)), "generation 7 is in force, from the source: ~Partition/web\n");
    }
}
