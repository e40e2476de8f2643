//! Files that are misspelt, of another system, or no settings at all.

use super::*;

#[test]
fn an_unknown_key_is_named_with_its_file_and_the_nearest_known_one() {
    let machine = with("[helth]\ndeadline = 1\n[download]\npatiance = \"1h\"");
    let warnings = machine.load().unwrap().warnings;
    let file = machine.path("etc/fwupdate.toml").display().to_string();
    let texts: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert!(texts.contains(&format!("unknown key helth in {file}; did you mean health?")), "{texts:?}");
    assert!(
        texts.contains(&format!("unknown key download.patiance in {file}; did you mean download.patience?")),
        "{texts:?}"
    );
    assert!(warnings.iter().all(Warning::fails_check));
}

#[test]
fn a_misspelt_section_is_told_by_its_whole_name() {
    let machine = with("[slot.a]\ndevice = \"/dev/x\"\n[cloud.dsp]\nid_scope = \"x\"");
    let texts: Vec<_> = machine.load().unwrap().warnings.iter().map(ToString::to_string).collect();
    for (written, meant) in [("slot.a", "slots.a"), ("cloud.dsp", "cloud.dps")] {
        let told = |text: &String| {
            text.starts_with(&format!("unknown key {written} in"))
                && text.ends_with(&format!("did you mean {meant}?"))
        };
        assert!(texts.iter().any(told), "{texts:?}");
    }
}

#[test]
fn a_path_in_quotes_is_told_as_it_was_written() {
    let machine = with("\"health.deadline\" = 5");
    let told = machine.load().unwrap().warnings[0].to_string();
    assert!(told.starts_with("unknown key bootloader.\"health.deadline\" in"), "{told}");
}

#[test]
fn bad_toml_names_file_and_line_but_not_the_secret_in_it() {
    let machine = with("[cloud]\nconnection_string = \"HostName=h;SharedAccessKey=c2VjcmV0\" x");
    let error = machine.error();
    assert!(error.contains("fwupdate.toml is not valid TOML (line 12)"), "{error}");
    assert!(!error.contains("c2VjcmV0"), "{error}");
}

#[test]
fn files_of_other_systems_editors_are_read_or_named() {
    let text = "[download]\r\npatience = \"2h\"\r\n";
    let machine = with("");
    let file = "etc/fwupdate.d/10.toml";
    machine.write(file, &format!("\u{feff}{text}"));
    assert_eq!(machine.load().unwrap().settings.download.patience, 7200 * SECOND);
    let wide = |order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
    for (content, found) in [
        ([vec![0xff, 0xfe], wide(u16::to_le_bytes)].concat(), "UTF-16"),
        ([vec![0xfe, 0xff], wide(u16::to_be_bytes)].concat(), "UTF-16"),
        (wide(u16::to_le_bytes), "UTF-16"),
        (b"# caf\xe9\n".to_vec(), "Latin-1 or Windows-1252 (line 1)"),
    ] {
        fs::write(machine.path(file), content).unwrap();
        let error = machine.error();
        assert!(error.contains(found) && error.contains("10.toml") && error.contains("UTF-8"), "{error}");
    }
}

#[test]
fn files_that_are_no_settings_are_refused() {
    let machine = with("");
    machine.write("etc/fwupdate.d/10.toml", &"#".repeat(2 << 20));
    assert!(machine.error().contains("larger than"));
    fs::write(machine.path("etc/fwupdate.d/10.toml"), [0xff, 0xfe]).unwrap();
    assert!(machine.error().contains("cannot be read"));
    // One that nobody writes to, whoever put it there, is not waited for.
    let fifo = machine.path("etc/fwupdate.d/10.toml");
    fs::remove_file(&fifo).unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(machine.error().contains("no regular file"));
}
