/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What bind mode costs the kernel: for every path in a file, mkdirat, open_tree, move_mount
 * and close, and nothing else.
 *
 *   floor STORE PATHS ROUNDS
 *
 * PATHS has base names of directories in STORE, one a line. Each round is in a mount
 * namespace of its own. floor prints microseconds of processor time a path, one line a round: of the four
 * calls, of the four calls with a statx before them, and of a recursive clone of the tree.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { most = 100000 };
static char *names[most];
static int count;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int must(long result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static int tmpfs(void)
{
	int fs = must(syscall(SYS_fsopen, "tmpfs", 1), "fsopen");
	must(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "fsconfig");
	int mnt = must(syscall(SYS_fsmount, fs, 1, 0), "fsmount");
	close(fs);
	return mnt;
}

static void fill(int store, int dir, int look)
{
	for (int i = 0; i < count; i++) {
		struct statx st;
		if (look)
			must(statx(store, names[i], AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st), "statx");
		must(mkdirat(dir, names[i], 0500), "mkdirat");
		int tree = must(syscall(SYS_open_tree, store, names[i],
			OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW | AT_RECURSIVE), "open_tree");
		must(syscall(SYS_move_mount, tree, "", dir, names[i], MOVE_MOUNT_F_EMPTY_PATH), "move_mount");
		close(tree);
	}
}

static void measure(const char *path)
{
	must(unshare(CLONE_NEWNS), "unshare");
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "mount");
	int store = must(open(path, O_PATH | O_DIRECTORY), path);
	double took[3];
	for (int look = 0; look < 2; look++) {
		int dir = tmpfs();
		must(syscall(SYS_move_mount, dir, "", AT_FDCWD, "/mnt", MOVE_MOUNT_F_EMPTY_PATH), "move_mount");
		double begin = now();
		fill(store, dir, look);
		took[look] = now() - begin;
		if (look == 1) {
			begin = now();
			must(syscall(SYS_open_tree, AT_FDCWD, "/mnt", OPEN_TREE_CLONE | AT_RECURSIVE), "open_tree");
			took[2] = now() - begin;
		}
		must(umount2("/mnt", MNT_DETACH), "umount");
		close(dir);
	}
	printf("%.3f %.3f %.3f\n", took[0] / count, took[1] / count, took[2] / count);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[512];
	FILE *f = argc == 4 ? fopen(argv[2], "r") : NULL;
	if (!f)
		errx(2, "usage: floor STORE PATHS ROUNDS");
	while (count < most && fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		names[count++] = strdup(line);
	}
	for (int i = atoi(argv[3]); i > 0; i--) {
		if (!fork()) {
			measure(argv[1]);
			_exit(0);
		}
		int status;
		wait(&status);
		if (status)
			return 1;
	}
}
