//! The page and its parts, in the binary.

pub struct Asset {
    pub name: &'static str,
    pub content_type: &'static str,
    pub body: &'static str,
}

pub const PAGE: &str = include_str!("assets/page.html");

const SCRIPT: &str = "text/javascript; charset=utf-8";

pub static ASSETS: &[Asset] = &[
    Asset {
        name: "style.css",
        content_type: "text/css; charset=utf-8",
        body: include_str!("assets/style.css"),
    },
    Asset { name: "main.js", content_type: SCRIPT, body: include_str!("assets/main.js") },
    Asset { name: "api.js", content_type: SCRIPT, body: include_str!("assets/api.js") },
    Asset { name: "charts.js", content_type: SCRIPT, body: include_str!("assets/charts.js") },
    Asset { name: "figures.js", content_type: SCRIPT, body: include_str!("assets/figures.js") },
    Asset { name: "tiers.js", content_type: SCRIPT, body: include_str!("assets/tiers.js") },
    Asset {
        name: "playground.js",
        content_type: SCRIPT,
        body: include_str!("assets/playground.js"),
    },
    Asset {
        name: "attribution.js",
        content_type: SCRIPT,
        body: include_str!("assets/attribution.js"),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_light_and_asks_only_this_server() {
        let weight = PAGE.len() + ASSETS.iter().map(|asset| asset.body.len()).sum::<usize>();
        assert!(weight < 300_000, "{weight} bytes");
        for body in ASSETS.iter().map(|asset| asset.body).chain([PAGE]) {
            let own = body.replace("http://www.w3.org/2000/svg", "");
            assert!(!own.contains("http://") && !own.contains("https://"), "{own}");
        }
    }

    #[test]
    fn every_part_that_is_asked_for_is_there() {
        let parts = |text: &'static str, before: &'static str| {
            text.split(before).skip(1).filter_map(|rest| rest.split(['"', '\'']).next())
        };
        let is_there = |name: &str| ASSETS.iter().any(|asset| asset.name == name);
        let mut num = 0;
        for name in parts(PAGE, "/dashboard/assets/")
            .chain(ASSETS.iter().flat_map(|asset| parts(asset.body, "from \"./")))
        {
            assert!(is_there(name), "{name}");
            num += 1;
        }
        assert!(num >= ASSETS.len(), "{num} parts were asked for");
    }
}
