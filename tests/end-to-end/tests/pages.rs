//! A report in a browser. These tests need Chromium: `make report-test` runs them.

use crate::eval::trained;
use crate::harness::Place;
use crate::report::everything;
use serde_json::Value;
use std::fs;
use std::process::Command;

/// Widths in pixels of a phone, a tablet and a desktop screen.
const WIDTHS: [u32; 3] = [375, 768, 1280];

/// The page in a frame of this width, with a script that writes its measurements as JSON into the
/// title. (A window of Chromium has a smallest width; a frame has none.)
fn framed(page: &str, width: u32) -> String {
    let source = page.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        r#"<!DOCTYPE html><html><head><style>:root {{ color-scheme: light dark }}</style><title></title></head>
<body><iframe style="width:{width}px;height:900px;border:0;color-scheme:light dark" srcdoc="{source}"></iframe><script>
const problems = [];
onerror = message => problems.push(String(message));
onload = () => {{
  const frame = document.querySelector("iframe"), inner = frame.contentWindow, page = frame.contentDocument;
  const root = page.documentElement, look = (element, key) => inner.getComputedStyle(element)[key];
  const shown = [...page.querySelectorAll("body *")].filter(element => element.getClientRects().length);
  const boxed = element => element.closest(".scroll");
  const beyond = shown.filter(element => !boxed(element) && element.getBoundingClientRect().right > root.clientWidth + 1);
  const boxes = [...page.querySelectorAll(".scroll")];
  const texts = [...page.querySelectorAll("figure svg text")];
  document.title = JSON.stringify({{
    problems, width: root.clientWidth, scrolls: root.scrollWidth,
    beyond: beyond.map(element => element.outerHTML.slice(0, 100)),
    boxes: boxes.length, scrolling: boxes.filter(box => box.scrollWidth > box.clientWidth).length,
    dark: inner.matchMedia("(prefers-color-scheme: dark)").matches,
    ground: look(page.body, "backgroundColor"), ink: look(page.body, "color"),
    texts: texts.length, inks: [...new Set(texts.map(text => look(text, "fill")))],
    pictures: [...page.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().width > 100).length,
    headings: [...page.querySelectorAll("h1, h2, h3")].map(heading => Number(heading.tagName[1])),
  }});
}};
</script></body></html>"#
    )
}

/// The browser's name or path, from CHROMIUM or the PATH.
fn chromium() -> String {
    let named = std::env::var("CHROMIUM").into_iter();
    let known = ["chromium", "chromium-browser", "google-chrome"].map(str::to_owned);
    let works = |name: &String| {
        Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    named
        .chain(known)
        .find(works)
        .expect("Chromium is needed (Debian: apt-get install chromium), in the PATH or named by CHROMIUM")
}

/// The measurements of a page at a width.
fn measure(place: &Place, page: &str, width: u32, dark: bool) -> Value {
    let file = place.path("framed.html");
    fs::write(&file, framed(page, width)).expect("written");
    let profile = place.path(&format!("profile-{width}-{dark}"));
    let mut browser = Command::new(chromium());
    browser.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        "--window-size=1600,1000",
        "--virtual-time-budget=5000",
        if dark {
            "--blink-settings=preferredColorScheme=0"
        } else {
            "--blink-settings=preferredColorScheme=1"
        },
        &format!("--user-data-dir={}", profile.display()),
        "--dump-dom",
        &format!("file://{}", file.display()),
    ]);
    let output = browser.output().expect("the browser starts");
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!errors.contains("CONSOLE"), "messages on the browser's console:\n{errors}");
    let title = shown.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    let (title, _) = title.unwrap_or_else(|| panic!("no title\n{errors}\n{shown}"));
    let title = title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&title).unwrap_or_else(|why| panic!("{why}: {title}\n{errors}"))
}

/// The brightness, 0 to 255, of a colour in the browser's form: `rgb(1, 2, 3)`.
fn brightness(colour: &Value) -> f64 {
    let colour = colour.as_str().expect("a colour");
    let numbers = colour.trim_start_matches("rgb(").trim_end_matches(')').split(", ");
    let numbers: Vec<f64> = numbers.map(|number| number.parse().expect(colour)).collect();
    let [red, green, blue] = numbers[..] else { panic!("{colour}") };
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

#[test]
#[ignore = "needs Chromium: make report-test"]
fn a_report_fits_every_screen_and_is_legible_in_light_and_dark_mode() {
    let place = trained(0.06);
    let runs = everything(&place);
    place.host(&format!("report {runs}")).succeeds();
    let page = fs::read_to_string(place.path("report.html")).expect("a page");
    for (width, dark) in WIDTHS.into_iter().flat_map(|width| [(width, false), (width, true)]) {
        let found = measure(&place, &page, width, dark);
        let case = format!("{width} pixels, {}: {found:#}", if dark { "dark" } else { "light" });
        assert_eq!(found["problems"], Value::Array(Vec::new()), "{case}");
        assert_eq!(found["dark"], dark, "{case}");
        let number = |key: &str| found[key].as_u64().expect("a number");
        assert!(number("width") > u64::from(width) - 20, "the frame has the requested width: {case}");
        assert!(number("scrolls") <= number("width"), "the page overflows: {case}");
        assert_eq!(found["beyond"], Value::Array(Vec::new()), "something overflows: {case}");
        assert!(width > 375 || number("scrolling") > 2, "wide tables scroll in boxes of their own: {case}");
        assert!(number("texts") > 50 && number("pictures") >= 8, "{case}");
        // Text and background differ in brightness, in the page and in its figures.
        let ground = brightness(&found["ground"]);
        assert_eq!(ground < 60.0, dark, "{case}");
        assert!((ground - brightness(&found["ink"])).abs() > 150.0, "{case}");
        // Heat maps have their own background colours, with black or white text.
        let of_maps = ["rgb(0, 0, 0)", "rgb(255, 255, 255)"];
        let inks = found["inks"].as_array().expect("a list").iter();
        let inks: Vec<_> = inks.filter(|ink| !of_maps.contains(&ink.as_str().expect("a colour"))).collect();
        assert!(!inks.is_empty(), "{case}");
        assert!(inks.iter().all(|ink| (ground - brightness(ink)).abs() > 150.0), "{case}");
        let headings: Vec<_> =
            found["headings"].as_array().expect("a list").iter().flat_map(Value::as_u64).collect();
        assert_eq!(headings.iter().filter(|level| **level == 1).count(), 1, "{case}");
        assert!(headings.windows(2).all(|pair| pair[1] <= pair[0] + 1), "no level is left out: {case}");
    }
}

#[test]
#[ignore = "needs Chromium: make report-test"]
fn content_that_is_too_wide_is_detected() {
    let place = Place::empty();
    let wide = "<!DOCTYPE html><html><body><p style=\"width:500px\">wide</p></body></html>";
    let found = measure(&place, wide, 375, false);
    assert!(found["scrolls"].as_u64() > found["width"].as_u64(), "{found:#}");
    assert_eq!(found["beyond"].as_array().map(Vec::len), Some(1), "{found:#}");
}
