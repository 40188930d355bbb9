//! The Debian package: what is in it, and that a system with it has a service that works.
//!
//! It is made of the binary that these tests run, and installed into a folder, with its scripts; a
//! machine that runs systemd is left alone by them.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "in tests a panic is the report")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use support::http::get;
use support::manager::Manager;
use support::{Backend, Process, root};

/// Runs something that has to succeed; what it prints.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{printed}\n{said}", output.status);
    printed
}

/// The package, made once for all tests of this file.
static PACKAGE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    assert!(
        root().join(".test-tools/bin/cargo-deb").exists(),
        "run scripts/test once: it installs cargo-deb"
    );
    let folder = tempfile::tempdir().unwrap();
    let mut script = Command::new(root().join("scripts/package"));
    script.args(["--binary", env!("CARGO_BIN_EXE_steadfast"), "--output"]);
    run(script.arg(folder.path()));
    let made: Vec<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [package] = made.as_slice() else { panic!("{made:?}") };
    let package = package.clone();
    (folder, package)
});

fn package() -> &'static Path {
    &PACKAGE.1
}

fn control(field: &str) -> String {
    run(Command::new("dpkg-deb").arg("--field").arg(package()).arg(field)).trim().to_owned()
}

/// A control file, such as a script.
fn control_file(name: &str) -> String {
    run(Command::new("dpkg-deb").arg("--info").arg(package()).arg(name))
}

/// `(mode, path)` of all that is in it; folders end in a slash.
fn contents() -> Vec<(String, String)> {
    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(package()));
    let lines = listed.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(["root/root", "0/0"].contains(&words[1]), "{line}");
        (words[0].to_owned(), words[5].trim_start_matches('.').to_owned())
    });
    lines.collect()
}

/// The values of a key of the unit, in their order.
fn unit(key: &str) -> Vec<String> {
    let unit = fs::read_to_string(root().join("packaging/steadfast.service")).unwrap();
    let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

#[test]
fn it_has_the_binary_a_service_a_config_manual_pages_and_the_guide() {
    let contents = contents();
    let mode = |path: &str| {
        let found = contents.iter().find(|(_, one)| one == path);
        found.unwrap_or_else(|| panic!("no {path} in {contents:#?}")).0.clone()
    };
    assert_eq!(mode("/usr/bin/steadfast"), "-rwxr-xr-x");
    for file in [
        "/etc/steadfast/config.toml",
        "/etc/logrotate.d/steadfast",
        "/usr/lib/systemd/system/steadfast.service",
        "/usr/lib/sysusers.d/steadfast.conf",
        "/usr/share/doc/steadfast/copyright",
        "/usr/share/doc/steadfast/config.example.toml",
        "/usr/share/doc/steadfast/docs/operate.md",
    ] {
        assert_eq!(mode(file), "-rw-r--r--", "{file}");
    }
    let pages: BTreeSet<&str> = contents
        .iter()
        .filter_map(|(_, path)| path.strip_prefix("/usr/share/man/man1/"))
        .filter(|name| !name.is_empty())
        .collect();
    let help = run(Command::new(env!("CARGO_BIN_EXE_steadfast")).arg("--help"));
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands = commands.lines().filter_map(|line| {
        // The continuation of a description is further in.
        line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?.split(' ').next()
    });
    let mut expected: BTreeSet<String> = commands
        .filter(|name| *name != "help")
        .map(|name| format!("steadfast-{name}.1.gz"))
        .collect();
    expected.insert("steadfast.1.gz".to_owned());
    let pages: BTreeSet<String> = pages.into_iter().map(str::to_owned).collect();
    assert_eq!(pages, expected);
    assert!(expected.len() > 3, "{expected:?}");
}

#[test]
fn its_control_files_say_what_it_needs_and_what_is_kept() {
    assert_eq!(control("Package"), "steadfast");
    assert_eq!(control("Version"), concat!(env!("CARGO_PKG_VERSION"), "-1"));
    let depends = control("Depends");
    assert!(depends.contains("libc6"), "{depends}");
    assert!(depends.contains("systemd-sysusers"), "{depends}");
    let kept: BTreeSet<String> =
        control_file("conffiles").lines().map(str::trim).map(str::to_owned).collect();
    let configs = ["/etc/logrotate.d/steadfast", "/etc/steadfast/config.toml"];
    assert_eq!(kept, configs.map(str::to_owned).into());
    let postinst = control_file("postinst");
    assert!(postinst.contains("deb-systemd-helper enable steadfast.service"), "{postinst}");
    assert!(postinst.contains("systemd-sysusers"), "{postinst}");
    // A config of nobody's is not served; a proxy that runs is not left behind by an upgrade.
    assert!(postinst.contains("deb-systemd-invoke try-restart steadfast.service"), "{postinst}");
    assert!(!postinst.contains("deb-systemd-invoke start"), "{postinst}");
}

#[test]
fn the_config_that_it_brings_is_valid_and_open_to_this_machine_only() {
    let config = root().join("packaging/config.toml");
    let mut check = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    run(check.arg("check").arg("--config").arg(&config));
    let config = fs::read_to_string(config).unwrap();
    for line in config.lines().filter(|line| line.starts_with(['b', 'a'])) {
        if let Some((_, address)) = line.split_once(" = \"") {
            assert!(address.starts_with("127.0.0.1:"), "{line}");
        }
    }
}

/// Settings that may come more than once.
const LISTS: [&str; 5] =
    ["After", "ExecReload", "SystemCallFilter", "Documentation", "EnvironmentFile"];

#[test]
fn the_unit_says_each_thing_once_and_systemd_understands_it() {
    let path = root().join("packaging/steadfast.service");
    let text = fs::read_to_string(&path).unwrap();
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()) {
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
        assert!(!value.is_empty(), "{line}");
        assert!(seen.insert(key) || LISTS.contains(&key), "twice: {line}");
    }
    assert_eq!(unit("Type"), ["notify"]);
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("without systemd-analyze, nobody reads the unit as systemd does");
        return;
    }
    let system = Installed::unpacked();
    let unit = system.folder.path().join("usr/lib/systemd/system/steadfast.service");
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]);
    let root = format!("--root={}", system.folder.path().display());
    let output = verify.arg(root).arg(unit).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=true", "--no-pager", "--threshold=20"]);
    run(security.arg(path));
}

/// A folder with the package in it.
struct Installed {
    folder: tempfile::TempDir,
    /// Whether it was installed, rather than just unpacked.
    scripts: bool,
}

impl Installed {
    fn unpacked() -> Self {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("dpkg-deb").arg("--extract").arg(package()).arg(folder.path()));
        Self { folder, scripts: false }
    }

    /// Installs it, where that takes nothing from this machine: by root, with what the scripts
    /// call, and without a systemd that they would talk to.
    fn new() -> Self {
        let is_root = run(Command::new("id").arg("-u")).trim() == "0";
        let has = |tool: &&str| Command::new(tool).arg("--version").output().is_ok();
        let tools = ["dpkg", "systemd-sysusers", "deb-systemd-helper"];
        if !is_root || Path::new("/run/systemd/system").exists() || !tools.iter().all(has) {
            eprintln!("the package is unpacked only: its scripts can't run here");
            return Self::unpacked();
        }
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("var/lib/dpkg");
        for inner in ["info", "updates"] {
            fs::create_dir_all(database.join(inner)).unwrap();
        }
        for file in ["status", "available"] {
            fs::write(database.join(file), "").unwrap();
        }
        let system = Self { folder, scripts: true };
        system.dpkg(&["--install", package().to_str().unwrap()]);
        system
    }

    fn dpkg(&self, arguments: &[&str]) {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={}", self.folder.path().display()));
        // Its scripts run on this system, told by DPKG_ROOT which one they are for.
        dpkg.args(["--force-script-chrootless", "--force-depends", "--log=/dev/null"]);
        run(dpkg.args(arguments));
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    /// A command line of the unit, of which the paths are in this system.
    fn command(&self, line: &str, main: Option<&Process>) -> Command {
        let pid = main.map_or(0, Process::pid).to_string();
        let mut words = line.split(' ').map(|word| {
            if word.starts_with("/usr/bin/steadfast") || word.starts_with("/etc/") {
                self.path(word).to_str().unwrap().to_owned()
            } else {
                word.replace("$MAINPID", &pid)
            }
        });
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        command
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn an_installed_package_serves_reloads_stops_and_is_removed() {
    let system = Installed::new();
    if system.scripts {
        let users = fs::read_to_string(system.path("/etc/passwd")).unwrap();
        assert!(users.lines().any(|line| line.starts_with("steadfast:")), "{users}");
        let wanted = "/etc/systemd/system/multi-user.target.wants/steadfast.service";
        assert!(system.path(wanted).symlink_metadata().is_ok(), "it is enabled");
    }
    let mode = system.path("/usr/bin/steadfast").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);

    // The config gets edited, as it asks for.
    let backend = Backend::start("a");
    let config = system.path("/etc/steadfast/config.toml");
    let (public, admin) = (free_address(), free_address());
    let brought = fs::read_to_string(&config).unwrap();
    let edited = brought
        .replace("127.0.0.1:8080", &public.to_string())
        .replace("127.0.0.1:9900", &admin.to_string())
        .replace("127.0.0.1:9001", &backend.address.to_string());
    fs::write(&config, &edited).unwrap();
    for line in unit("ExecStartPre") {
        run(&mut system.command(&line, None));
    }

    let manager = Manager::at_path(&system.path("/notify"));
    let [start] = unit("ExecStart").try_into().unwrap();
    let mut command = system.command(&start, None);
    let mut proxy = Process::start("proxy", command.env("NOTIFY_SOCKET", &manager.name));
    manager.expect("READY=1");
    assert_eq!(get(public, "/health").status, 200);
    assert_eq!(get(admin, "/readyz").status, 200);

    let reload = unit("ExecReload");
    for line in &reload {
        run(&mut system.command(line, Some(&proxy)));
    }
    manager.expect("RELOADING=1");
    let told = manager.expect("READY=1");
    assert_eq!(told.value("STATUS"), "Serving; reloaded with 0 changes");
    // A broken one does not get as far as the signal.
    let broken = system.path("/etc/steadfast/broken.toml");
    fs::write(&broken, "[[listener]]\n").unwrap();
    let check = reload[0].replace("config.toml", "broken.toml");
    assert!(!system.command(&check, Some(&proxy)).output().unwrap().status.success());
    fs::remove_file(&broken).unwrap();

    proxy.signal("TERM");
    manager.expect("STOPPING=1");
    assert!(proxy.wait_for_exit().success());

    if !system.scripts {
        return;
    }
    let log = system.path("/var/log/steadfast/access.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::write(&log, "a line\n").unwrap();
    // Installed once more, over what was edited: nothing of it is lost.
    system.dpkg(&["--force-confold", "--install", package().to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&config).unwrap(), edited);
    system.dpkg(&["--remove", "steadfast"]);
    assert!(!system.path("/usr/bin/steadfast").exists());
    assert_eq!(fs::read_to_string(&config).unwrap(), edited, "it stays on remove");
    assert!(log.exists());
    system.dpkg(&["--purge", "steadfast"]);
    assert!(!config.exists(), "it goes on purge");
    assert!(!log.exists());
    let wanted = "/etc/systemd/system/multi-user.target.wants/steadfast.service";
    assert!(system.path(wanted).symlink_metadata().is_err());
}
