//! Debian's Chromium without a window, driven over its DevTools protocol; whatever goes wrong in a page is written down.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use chromiumoxide::cdp::IntoEventKind;
use chromiumoxide::cdp::browser_protocol::emulation::{
    MediaFeature, SetDeviceMetricsOverrideParams,
};
use chromiumoxide::cdp::browser_protocol::log::{EventEntryAdded, LogEntryLevel};
use chromiumoxide::cdp::browser_protocol::network::{EventLoadingFailed, EventRequestWillBeSent};
use chromiumoxide::cdp::js_protocol::runtime::{
    ConsoleApiCalledType, EvaluateParams, EventConsoleApiCalled, EventExceptionThrown,
};
use chromiumoxide::{Browser, BrowserConfig, Page, page::ScreenshotParams};
use futures::StreamExt as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::lab::process::{eventually, find};

/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);
/// What a policy forbids is an event of the document; as an error of the console it is seen from here.
const TELL: &str = "document.addEventListener('securitypolicyviolation', (e) => \
     console.error(`CSP: ${e.violatedDirective} forbids ${e.blockedURI}`));";

pub struct Chromium {
    browser: Browser,
    handler: JoinHandle<()>,
    _profile: TempDir,
}

/// One page, and all that was wrong with it since it was opened.
pub struct Tab {
    page: Page,
    /// None: as it was opened.
    size: Mutex<Option<SetDeviceMetricsOverrideParams>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    wrong: Vec<String>,
    requests: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
pub enum Scheme {
    Light,
    Dark,
}

impl Chromium {
    /// None, and a word, where there is none; in CI that is a failure.
    pub async fn or_skip() -> Option<Self> {
        let Some(program) = find("chromium") else {
            assert!(std::env::var_os("CI").is_none(), "run `make deps`");
            eprintln!("skipped: there is no chromium; `make deps` installs it");
            return None;
        };
        Some(Self::start(&program).await.expect("Chromium"))
    }

    async fn start(program: &Path) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let config = BrowserConfig::builder()
            .chrome_executable(program)
            .user_data_dir(profile.path())
            // Its sandbox is not for root, and what it sees here is ours.
            .no_sandbox()
            .disable_https_first()
            .surface_invalid_messages()
            .arg("disable-gpu")
            .build()
            .map_err(|why| anyhow!("{why}"))?;
        let (browser, mut handler) = Browser::launch(config).await?;
        let handler = tokio::spawn(async move { while handler.next().await.is_some() {} });
        Ok(Self {
            browser,
            handler,
            _profile: profile,
        })
    }

    pub async fn tab(&self) -> Result<Tab> {
        let page = self.browser.new_page("about:blank").await?;
        page.enable_log().await?;
        page.enable_runtime().await?;
        page.evaluate_on_new_document(TELL).await?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        note(&page, &seen, |seen, it: &EventRequestWillBeSent| {
            seen.requests.push(it.request.url.clone());
        })
        .await?;
        note(&page, &seen, |seen, it: &EventLoadingFailed| {
            // What a page that is left had not read yet is no failure.
            if it.canceled != Some(true) {
                seen.wrong.push(format!("not loaded: {}", it.error_text));
            }
        })
        .await?;
        note(&page, &seen, |seen, it: &EventEntryAdded| {
            if matches!(
                it.entry.level,
                LogEntryLevel::Error | LogEntryLevel::Warning
            ) {
                let url = it.entry.url.as_deref().unwrap_or_default();
                seen.wrong.push(format!("log: {} {url}", it.entry.text));
            }
        })
        .await?;
        note(&page, &seen, |seen, it: &EventConsoleApiCalled| {
            if matches!(
                it.r#type,
                ConsoleApiCalledType::Error | ConsoleApiCalledType::Warning
            ) {
                let said = it.args.iter().filter_map(|arg| arg.value.clone());
                let said: Vec<String> = said.map(|value| value.to_string()).collect();
                seen.wrong.push(format!("console: {}", said.join(" ")));
            }
        })
        .await?;
        note(&page, &seen, |seen, it: &EventExceptionThrown| {
            let thrown = it.exception_details.exception.as_ref();
            let said = thrown.and_then(|thrown| thrown.description.clone());
            let said = said.unwrap_or_else(|| it.exception_details.text.clone());
            seen.wrong.push(format!("exception: {said}"));
        })
        .await?;
        Ok(Tab {
            page,
            size: Mutex::default(),
            seen,
        })
    }

    /// Ends it, and waits until it has ended.
    pub async fn stop(mut self) -> Result<()> {
        self.browser.close().await?;
        self.browser.wait().await?;
        self.handler.abort();
        Ok(())
    }
}

async fn note<E: IntoEventKind + Unpin + Send + Sync + 'static>(
    page: &Page,
    seen: &Arc<Mutex<Seen>>,
    write: impl Fn(&mut Seen, &E) + Send + 'static,
) -> Result<()> {
    let (mut events, seen) = (page.event_listener::<E>().await?, seen.clone());
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            write(&mut seen.lock().unwrap(), &event);
        }
    });
    Ok(())
}

impl Tab {
    pub async fn look(&self, scheme: Scheme, width: u32) -> Result<()> {
        let value = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        let scheme = MediaFeature::new("prefers-color-scheme", value);
        self.page.emulate_media_features(vec![scheme]).await?;
        let size = SetDeviceMetricsOverrideParams::new(width, 800, 1.0, width < 500);
        self.page.execute(size.clone()).await?;
        *self.size.lock().unwrap() = Some(size);
        Ok(())
    }

    /// Opens a page before all others, and waits until its script is live.
    pub async fn open(&self, url: &str) -> Result<()> {
        // Behind another tab nothing is drawn, and what waits for a frame waits for ever.
        self.page.bring_to_front().await?;
        self.page.goto(url).await?;
        self.until("live", "document.querySelector('#live.on')")
            .await
    }

    /// What a script says. A promise is waited for.
    pub async fn says(&self, script: &str) -> Result<Value> {
        let params = EvaluateParams::builder()
            .expression(script)
            .await_promise(true)
            .return_by_value(true)
            .build()
            .map_err(|why| anyhow!("{why}"))?;
        let told = self.page.execute(params).await?.result;
        if let Some(thrown) = told.exception_details {
            bail!("{script}: {thrown}");
        }
        Ok(told.result.value.unwrap_or(Value::Null))
    }

    pub async fn text(&self, selector: &str) -> Result<String> {
        let script = format!("document.querySelector({selector:?})?.innerText ?? ''");
        let text = self.says(&script).await?;
        Ok(text.as_str().unwrap_or_default().to_string())
    }

    /// Waits until a script says something that is true.
    pub async fn until(&self, what: &str, script: &str) -> Result<()> {
        let script = format!("!!({script})");
        let waited = eventually(what, AT_ALL, async || {
            Ok((self.says(&script).await? == true).then_some(()))
        });
        let Err(late) = waited.await else {
            return Ok(());
        };
        let shown = self.text("body").await?;
        Err(late.context(format!("the page says: {shown}")))
    }

    /// Waits until a part of the page says it.
    pub async fn until_told(&self, selector: &str, words: &str) -> Result<()> {
        let script = format!(
            "[...document.querySelectorAll({selector:?})].some((e) => (e.innerText ?? e.textContent).includes({words:?}))"
        );
        self.until(&format!("{words:?} in {selector}"), &script)
            .await
    }

    pub async fn click(&self, selector: &str) -> Result<()> {
        self.until_done(&format!("a click on {selector}"), async || {
            self.page.find_element(selector).await?.click().await?;
            Ok(())
        })
        .await
    }

    /// Types into a field in place of what stands there.
    pub async fn type_into(&self, selector: &str, text: &str) -> Result<()> {
        self.says(&format!("document.querySelector({selector:?}).value = ''"))
            .await?;
        self.until_done(&format!("the focus on {selector}"), async || {
            self.page.find_element(selector).await?.focus().await?;
            Ok(())
        })
        .await?;
        let field = self.page.find_element(selector).await?;
        field.type_str(text).await?;
        Ok(())
    }

    /// Tries until it is done: a live part of the page may be drawn anew between any two of its steps.
    async fn until_done(
        &self,
        what: &str,
        mut step: impl AsyncFnMut() -> Result<()>,
    ) -> Result<()> {
        let mut last = None;
        let done = eventually(what, AT_ALL, async || match step().await {
            Ok(()) => Ok(Some(())),
            Err(why) => {
                last = Some(why);
                Ok(None)
            }
        });
        let done = done.await;
        done.map_err(|late| match last {
            Some(why) => late.context(format!("{why:#}")),
            None => late,
        })
    }

    pub async fn press(&self, key: &str) -> Result<()> {
        let focused = self.page.find_element("body").await?;
        focused.press_key(key).await?;
        Ok(())
    }

    /// The whole page as a picture, in `target/screenshots`.
    pub async fn picture(&self, name: &str) -> Result<()> {
        let target = Path::new(env!("CARGO_BIN_EXE_peili")).ancestors().nth(2);
        let dir: PathBuf = target.context("a target directory")?.join("screenshots");
        std::fs::create_dir_all(&dir)?;
        self.page.bring_to_front().await?;
        let whole = ScreenshotParams::builder().full_page(true).build();
        self.page
            .save_screenshot(whole, dir.join(format!("{name}.png")))
            .await?;
        // For the picture the window was as high as the page, and afterwards it has no size of ours.
        let size = self.size.lock().unwrap().clone();
        if let Some(size) = size {
            self.page.execute(size).await?;
        }
        Ok(())
    }

    pub fn wrong(&self) -> Vec<String> {
        self.seen.lock().unwrap().wrong.clone()
    }

    pub fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().requests.clone()
    }
}
