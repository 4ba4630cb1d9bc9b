//! The dates that chat templates ask for, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `format` with the usual codes (`%d %B %Y %H:%M:%S`, ...) filled in; unknown codes stay.
pub fn format(time: SystemTime, format: &str) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let date = Date::from_days(seconds / 86_400);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, true) => out.push_str(&code(chars.next(), &date, seconds % 86_400)),
            (c, false) => out.push(c),
        }
    }
    out
}

fn code(code: Option<char>, date: &Date, second: u64) -> String {
    let month = MONTHS[date.month as usize - 1];
    let weekday = DAYS[date.weekday as usize];
    match code {
        Some('Y') => date.year.to_string(),
        Some('y') => format!("{:02}", date.year % 100),
        Some('m') => format!("{:02}", date.month),
        Some('d') => format!("{:02}", date.day),
        Some('B') => month.to_owned(),
        Some('b') => month[..3].to_owned(),
        Some('A') => weekday.to_owned(),
        Some('a') => weekday[..3].to_owned(),
        Some('H') => format!("{:02}", second / 3600),
        Some('M') => format!("{:02}", second / 60 % 60),
        Some('S') => format!("{:02}", second % 60),
        Some('%') | None => "%".to_owned(),
        Some(other) => format!("%{other}"),
    }
}

struct Date {
    year: u64,
    /// 1..=12
    month: u64,
    /// 1..=31
    day: u64,
    /// Days since Thursday, the day of the epoch.
    weekday: u64,
}

impl Date {
    /// From days since 1970-01-01, by eras of 400 years that start on March 1st
    /// (Howard Hinnant, "chrono-compatible low-level date algorithms").
    fn from_days(days: u64) -> Self {
        let shifted = days + 719_468;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self {
            year: shifted / 146_097 * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * from_march + 2) / 5 + 1,
            weekday: days % 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn known_moments_come_out_right() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(format(at(0), "%A %d %b %Y %H:%M:%S"), "Thursday 01 Jan 1970 00:00:00");
        assert_eq!(
            format(at(1_709_210_096), "%a %d %B %y, %Y-%m-%d"),
            "Thu 29 February 24, 2024-02-29"
        );
        assert_eq!(format(at(951_782_399), "%d.%m. 100%% %q%"), "28.02. 100% %q%");
    }
}
