"""Which printed remedy was tried where: each finding stands in one of the three tables, a test compares.

A test is named by its file and its name.
"""

from __future__ import annotations

from collections.abc import Mapping

REAL, VM = "tests/real", "tests/vm/guest"

# the commands are taken out of the finding's own text and run, and the finding ends, or they show what they say
WORD_BY_WORD: Mapping[str, str] = {
    "filesystem-shut-down": f"{REAL}/test_kernellog.py::test_an_xfs_shutdown_and_its_remedy",
    "drive-errors": f"{REAL}/test_kernellog.py::test_reads_of_a_drive_that_fail",
    "inotify-near-limit": f"{REAL}/test_inotify.py::test_the_remedy_of_a_limit_that_is_near_raises_it",
    "hot-reload-dead": (
        f"{REAL}/test_inotify.py::test_a_file_that_was_replaced_under_a_container_is_told_until_the_remedy_is_run"
    ),
    "deleted-files-held": (
        f"{REAL}/test_openfiles.py::"
        "test_a_deleted_file_of_64_mib_is_the_containers_that_holds_it_until_the_remedy_is_run"
    ),
    "orphan-layers": f"{REAL}/test_layers.py::test_an_orphan_of_a_killed_import_is_found_and_its_remedy_removes_it",
    "layer-import-interrupted": (
        f"{REAL}/test_layers.py::test_an_orphan_of_a_killed_import_is_found_and_its_remedy_removes_it"
    ),
    "layer-link-broken": f"{REAL}/test_layers.py::test_a_lost_link_names_who_will_fail_and_its_remedy_mends_it",
    "layer-link-litter": f"{REAL}/test_layers.py::test_a_lost_link_names_who_will_fail_and_its_remedy_mends_it",
    "overlay-metacopy-redirect": (
        f"{REAL}/test_overlay.py::test_a_container_written_with_metacopy_is_found_when_the_module_has_it_off"
    ),
    "overlay-deep-chain": f"{REAL}/test_overlay.py::test_a_deep_image_is_found_until_it_is_made_flat",
    "overlay-shared-upper": f"{REAL}/test_overlay.py::test_a_shared_upper_is_found_until_the_remedy_is_done",
    "overlay-no-dtype": f"{REAL}/test_overlay.py::test_a_filesystem_without_types_is_found_until_the_remedy_is_done",
    "vfs-driver-in-use": (
        f"{REAL}/test_overlay.py::test_vfs_is_found_until_docker_is_on_overlay2_and_what_is_left_until_it_is_removed"
    ),
    "stale-driver-residue": (
        f"{REAL}/test_overlay.py::test_vfs_is_found_until_docker_is_on_overlay2_and_what_is_left_until_it_is_removed"
    ),
    "rootfs-not-mounted": (
        f"{REAL}/test_overlay.py::test_a_root_unmounted_under_a_container_is_found_until_it_is_started_anew"
    ),
    "qgroup-inconsistent": f"{REAL}/test_qgroup.py::test_an_inconsistent_filesystem_is_found_and_its_usage_withheld",
    "qgroups-disappeared": f"{REAL}/test_qgroup.py::test_numbers_are_those_of_btrfs_at_every_step",
    "btrfs-metadata-full": f"{REAL}/test_qgroup.py::test_the_remedy_for_full_metadata_works_when_it_is_found",
    "volume-mount-missing": (
        f"{REAL}/test_volumes.py::test_a_mount_taken_away_under_a_container_is_found_until_all_is_started_anew"
    ),
    "zfs-sync-disabled": f"{VM}/test_doctor.py::test_pools_of_both_kinds_are_as_their_own_tools_say",
    "zfs-pool-suspended": f"{VM}/test_doctor.py::test_a_suspended_pool_is_critical_until_its_remedy_is_done",
    "filesystem-errors": f"{REAL}/test_kernellog.py::test_damaged_data_on_btrfs_and_what_its_remedy_shows",
    "btrfs-device-errors": f"{REAL}/test_qgroup.py::test_errors_of_a_device_are_told_until_it_is_reset_or_replaced",
    "drop-caches-process": f"{VM}/test_kernellog.py::test_a_job_that_drops_caches_is_found_where_its_remedy_looks",
    "thin-pool-loop-backed": (
        f"{VM}/test_thinpool_runtimes.py::test_dockers_loop_files_are_found_until_the_remedy_is_done"
    ),
    "zfs-foreign-snapshots": f"{VM}/test_zfs.py::test_dockers_datasets_are_those_of_its_containers",
    "page-cache-pollution": f"{VM}/test_pagecache.py::test_a_polluter_is_told_until_half_of_its_cache_is_reclaimed",
    "dying-cgroups": f"{VM}/test_pagecache.py::test_a_thousand_removed_cgroups_are_told_until_the_remedy_is_done",
    "drop-caches-in-use": f"{VM}/test_pagecache.py::test_what_drops_caches_again_and_again_is_told_and_named",
    "thin-pool-needs-check": (
        f"{VM}/test_thinpool.py::test_a_burst_ends_in_needs_check_below_full_until_the_remedy_is_done"
    ),
    "thin-pool-read-only": f"{VM}/test_thinpool.py::test_lvm_extends_a_full_pool_by_the_remedy_and_then_by_itself",
    "thin-pool-no-autoextend": f"{VM}/test_thinpool.py::test_lvm_extends_a_full_pool_by_the_remedy_and_then_by_itself",
    "thin-pool-metadata-small": (
        f"{VM}/test_thinpool.py::test_metadata_below_the_recommended_size_are_told_until_the_remedy_is_done"
    ),
    "volume-snapshot-race": f"{VM}/test_volumes.py::test_a_snapshot_that_races_with_a_removal_is_told_once",
    "pressure-candidate": (
        f"{REAL}/test_qgroup.py::test_containers_of_docker_are_named_and_lose_their_limits_with_the_daemon"
    ),
}

# a test does by hand what the text says
BY_HAND: Mapping[str, str] = {
    "container-oom-kill": f"{REAL}/test_kernellog.py::test_a_process_killed_for_memory_is_its_containers",
    "daemon-options-unknown": (
        f"{VM}/test_overlay.py::test_an_option_that_stops_docker_is_told_until_the_remedy_is_done"
    ),
    # below an overlay; how a program polls is its own
    "inotify-blind-watch": (
        f"{REAL}/test_inotify.py::test_a_watch_on_a_layer_below_an_overlay_is_blind_and_one_on_the_overlay_is_not"
    ),
    # but for drop_caches, at which the lab's root hangs
    "slab-dominated": (
        f"{VM}/test_pagecache.py::test_who_walks_many_files_is_shown_and_a_reclaim_frees_their_dentries"
    ),
    "thin-pool-io-stalled": f"{VM}/test_thinpool.py::test_a_pool_that_hangs_is_named_and_leaves_the_other_fresh",
    "thin-pool-held-root": f"{VM}/test_thinpool.py::test_a_held_root_is_told",
    "zfs-recordsize-mismatch": f"{VM}/test_zfs.py::test_small_overwrites_cost_much_in_large_records_alone",
}

NOT_TRIED: Mapping[str, str] = {
    "zfs-version-skew": "a reboot, or other packages",
}
